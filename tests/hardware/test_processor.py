"""What /proc/cpuinfo says of products of bfloat16."""

import pytest

from mail_jax.hardware import processor

X86 = "processor\t: 0\nflags\t\t: fpu avx2 {} avx512f\nbugs\t\t: avx512_bf16_none\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd {} i8mm\n"


@pytest.mark.parametrize(
  ("text", "known"),
  [
    (X86.format("avx512_bf16"), True),
    (X86.format("amx_bf16"), True),
    (X86.format("avx512_vnni"), False),
    (ARM.format("bf16"), True),
    (ARM.format("sve"), False),
    ("", False),
  ],
)
def test_flags_of_processors(text, known, tmp_path):
  (tmp_path / "cpuinfo").write_text(text)
  assert processor.multiplies_bfloat16(str(tmp_path / "cpuinfo")) == known


def test_without_linux_no_instructions_are_known(tmp_path):
  assert not processor.multiplies_bfloat16(str(tmp_path / "cpuinfo"))
