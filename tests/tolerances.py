"""How exact a result must be, by its type: the one place where tests take their tolerances from."""

import torch

_RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def tolerance(dtype: torch.dtype, scale: float = 1.0) -> dict[str, float]:
    """Give `rtol` and `atol` for `torch.testing.assert_close` of results whose terms are as large as `scale`.

    The terms, not the result: where they cancel, the rounding of the largest one stays.
    """
    return {"rtol": _RELATIVE[dtype], "atol": _RELATIVE[dtype] * scale}
