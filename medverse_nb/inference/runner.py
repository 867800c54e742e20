"""Running the network on a batch of windows: device, precision, memory layout."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.config import Precision
from ..model.device import autocast
from ..model.network import ICLNetwork
from ..resampling import FloatArray


class WindowRunner:
    """Call a network on NumPy windows; results come back as float32."""

    def __init__(
        self, model: ICLNetwork, precision: Precision, mini_context_size: int | None
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.precision = precision
        self.mini_context_size = mini_context_size

    @torch.inference_mode()
    def __call__(
        self, target: FloatArray, context: FloatArray, feedback: FloatArray | None
    ) -> FloatArray:
        """Predict (B, X, Y, Z).

        Parameters
        ----------
        target : (B, X, Y, Z).
        context : (B, L, 2, X, Y, Z), image and label.
        feedback : (B, 2, X, Y, Z), the autoregressive image and label, or None.
        """
        pairs = self._tensor(context)
        ar_image = ar_label = None
        if feedback is not None:
            pair = self._tensor(feedback)
            ar_image, ar_label = pair[:, None, :1], pair[:, None, 1:]
        with autocast(self.precision, self.device):
            prediction: Tensor = self.model(
                self._tensor(target)[:, None],
                pairs[:, :, :1],
                pairs[:, :, 1:],
                ar_image,
                ar_label,
                mini_context_size=self.mini_context_size,
            )
        result: FloatArray = prediction[:, 0].float().cpu().numpy()
        return result

    def _tensor(self, array: FloatArray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)
