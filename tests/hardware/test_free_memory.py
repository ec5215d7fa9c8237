"""The memory that is left: of the machine, of this process."""

import types

import jax
import own_process
import psutil
import pytest

from mail_jax.hardware import memory


def test_no_more_is_free_than_the_machine_has():
  free = memory.available()
  assert free is not None and 0 < free < psutil.virtual_memory().total


def test_a_limit_of_the_process_counts():
  code = """
import resource
from mail_jax.hardware import memory
used = memory._kilobytes("/proc/self/status", "VmSize:")
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
print(memory.available())
"""
  assert 0 < int(own_process.run(code)) <= 2**28


@pytest.mark.parametrize(
  ("stats", "free"), [({"bytes_limit": 100, "bytes_in_use": 30}, 70), ({}, None), (None, None)]
)
def test_an_accelerator_says_itself_what_is_free(monkeypatch, stats, free):
  device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  assert memory.available() == free
