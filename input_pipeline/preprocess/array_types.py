"""Array types with shapes, from jaxtyping where it is installed.

Exported models ship this folder to machines that have NumPy and Pillow alone; annotations mean
nothing there.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from jaxtyping import Bool, Float, Float32, Int32, Int64, Shaped, UInt8, UInt16
else:
  try:
    from jaxtyping import Bool, Float, Float32, Int32, Int64, Shaped, UInt8, UInt16
  except ImportError:

    class _AnyShape:
      def __class_getitem__(cls, item):
        return item[0]

    Bool = Float = Float32 = Int32 = Int64 = Shaped = UInt8 = UInt16 = _AnyShape

__all__ = ["Bool", "Float", "Float32", "Int32", "Int64", "Shaped", "UInt8", "UInt16"]
