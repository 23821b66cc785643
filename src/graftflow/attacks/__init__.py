"""Adversarial attacks, each under a page in a module of its own, written as its paper writes it.

| function | attack | returns |
|---|---|---|
| :func:`fast_gradient` (:func:`fgsm`) | FGSM | :class:`Attacked` (pixels) |
| :func:`projected_gradient` (:func:`pgd`) | PGD in L-infinity or L2, from random starts | :class:`Attacked` (pixels) |
| :func:`apgd` | APGD with cross-entropy, DLR or targeted DLR | :class:`Attacked` |
| :func:`square` | Square, without gradients | :class:`Attacked` |
| :func:`ensemble`, :func:`in_turn` | several, each on what those before did not fool | :class:`Attacked` |
| :func:`descend` | gradient descent towards a class | pixels |

Every attack takes ``logits_of``, a function from pixels ``float32 (n, h, w, 3)`` in [0, 1] to
logits ``float32 (n, k)`` with k ≥ 2 (a model with one sigmoid needs two logits: 0 and its own), and
returns pixels of the same shape and range.

Signs: :func:`log_odds_against` is the loss. An untargeted attack RAISES it for the true label, a
targeted attack LOWERS it for the target class.

The network is compiled once for gradients of a loss and once for predictions, for any number of pictures, radius and
steps. The attacks work in batches; a picture that is fooled leaves its batch.
"""

from graftflow.attacks.auto_pgd import apgd, checkpoints
from graftflow.attacks.balls import distances, round_to_eight_bits
from graftflow.attacks.descents import descend
from graftflow.attacks.ensembles import Attack, ensemble, in_turn
from graftflow.attacks.gradient_signs import fast_gradient, fgsm
from graftflow.attacks.losses import dlr, log_odds_against, margin_against, targeted_dlr, total_variation
from graftflow.attacks.networks import Logits, logits_model, loss_gradient, predict_logits, signed_gradient
from graftflow.attacks.projected_gradients import pgd, projected_gradient
from graftflow.attacks.results import Attacked
from graftflow.attacks.square_search import square, square_share

__all__ = [
    "Attack",
    "Attacked",
    "Logits",
    "apgd",
    "checkpoints",
    "descend",
    "distances",
    "dlr",
    "ensemble",
    "fast_gradient",
    "fgsm",
    "in_turn",
    "log_odds_against",
    "logits_model",
    "loss_gradient",
    "margin_against",
    "pgd",
    "predict_logits",
    "projected_gradient",
    "round_to_eight_bits",
    "signed_gradient",
    "square",
    "square_share",
    "targeted_dlr",
    "total_variation",
]
