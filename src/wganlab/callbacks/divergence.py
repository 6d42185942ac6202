"""Numbers that go wrong end a run at once."""

from pytorch_lightning import Trainer

from wganlab.adversarial import AdversarialModule
from wganlab.callbacks import is_due
from wganlab.callbacks.checkpoints import Checkpoints


def divergence(trainer: Trainer, module: AdversarialModule, every: int) -> str | None:
    """What has become not finite, at which step, and where the last good state is; None while all is well.

    On a GPU, where looking would make every step wait, one step in ``every`` looks, back over all since the last row.
    """
    on_cpu = module.device.type == "cpu"
    if not (on_cpu or is_due(trainer, every)):
        return None
    found = module.first_not_finite(1 if on_cpu else every)
    if found is None:
        return None
    quantity, value, steps_ago = found
    savers = [callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)]  # type: ignore[attr-defined]
    saved = savers[0].saved if savers else 0
    kept = f"the last finite checkpoint is that of step {saved}" if saved else "no checkpoint had been saved"
    return f"{quantity} is {value} at generator step {trainer.global_step - steps_ago}: training has diverged; {kept}"
