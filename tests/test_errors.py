import pytest
import torch

from ldpruner import errors
from ldpruner.errors import LdPrunerError, OperatorNotFound, is_out_of_memory, one_line


def test_every_error_is_one_that_the_command_line_prints() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(kinds) > 10
    assert all(issubclass(kind, LdPrunerError) for kind in kinds)


def test_an_unknown_operator_is_answered_with_the_nearest() -> None:
    names = ["mid_block.attentions.0", "up_blocks.1.resnets.0"]
    assert "nearest: mid_block.attentions.0" in str(OperatorNotFound("mid_block.attention.0", names))
    assert "ldpruner operators" in str(OperatorNotFound("xyz", names))


@pytest.mark.parametrize(
    ("text", "line"), [("a\n  b", "ValueError: a b"), ("x" * 300, "ValueError: " + "x" * 187 + "…")]
)
def test_an_error_of_another_library_is_one_short_line(text: str, line: str) -> None:
    assert one_line(ValueError(text)) == line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("no memory"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_running_out_of_memory_is_recognised(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
