"""Advice on batch size and learning rate before the training starts: rules of thumb (advice A9, A11, A13, A21)."""

# Usual learning rates, low and high: 0.01 to 0.001 for computer vision (A13); SGD 0.1 from random weights (He
# et al. 2015), Adam 1e-5 for fine-tuning; Adadelta's is a factor on a step that it finds itself (Zeiler 2012).
# Muon 0.02 (Jordan et al. 2024), 0.24 for the filters and 0.67 for the head in his airbench94_muon.
USUAL_RATES = dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "SWATS"), (1e-5, 1e-2)) | {
    "SGD": (1e-3, 0.5),
    "Muon": (2e-3, 0.7),
    "Adamax": (1e-5, 2e-2),
    "Adagrad": (1e-3, 0.1),
    "Adadelta": (0.1, 1.0),
}


def advise(
    batch: int,
    optimizer: str,
    rate: float,
    decays: bool,
    shuffled: bool = True,
    seeded: bool = True,
    frozen_at_random: bool = False,
    averaged: float = 0.0,
) -> list[str]:
    """What looks unusual about a run, a sentence each.

    Args:
        batch: Images per step on one device.
        optimizer: Name of its class.
        rate: The highest learning rate of any group.
        decays: Whether the learning rate falls during the run.
        shuffled: Whether the order of the images changes from epoch to epoch.
        seeded: Whether the random seed is set.
        frozen_at_random: Whether layers are frozen at their random initial weights.
        averaged: Share of the run's steps over which EMA's decay reaches back.
    """
    low, high = USUAL_RATES.get(optimizer, (0.0, float("inf")))
    remarks = [
        (batch < 16, f"batch size {batch} is small: below 16 gradients are noisy; raise data.batch_size"),
        (not low <= rate <= high, f"learning rate {rate:g} is unusual for {optimizer}; usual: {low:g} to {high:g}"),
        (not decays, "the learning rate does not decay during the run; model.schedule=project.optim.Cosine lowers it"),
        (not shuffled, "the images are not shuffled: each epoch has the same order; data.sampler=shuffle is usual"),
        (not seeded, "no seed is set, so this run cannot be repeated; seed_everything=0 sets one"),
        (averaged > 0.2, f"EMA's decay reaches back over {averaged:.0%} of the run's steps; lower it, or train longer"),
        (frozen_at_random, "model.freeze freezes layers at their random weights; set model.weights to start from"),
    ]
    return [text for due, text in remarks if due]
