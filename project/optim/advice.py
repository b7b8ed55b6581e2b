"""Advice on batch size and learning rate, from the guide's rules of thumb (A9, A11, A13)."""

SMALLEST_BATCH = 16  # A11: gradients of fewer images are noisy

# Initial rates that usually work, per optimizer; outside, something else is meant or a digit was lost. A13 gives 0.01 to 0.001 for
# computer vision; SGD with momentum begins at 0.1 from random weights (He et al. 2015), Adam at 1e-5 for fine-tuning; Adadelta's
# rate is a factor on a step that it finds itself (Zeiler 2012).
USUAL_RATES = {
    "SGD": (1e-3, 0.5),
    "Adam": (1e-5, 1e-2),
    "AdamW": (1e-5, 1e-2),
    "SWATS": (1e-5, 1e-2),
    "NAdam": (1e-5, 1e-2),
    "RAdam": (1e-5, 1e-2),
    "Adamax": (1e-5, 2e-2),
    "RMSprop": (1e-5, 1e-2),
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
) -> list[str]:
    """What a careful colleague would remark before the training.

    Args:
        batch: Images on one device for one step.
        optimizer: Name of its class.
        rate: The highest rate of any group.
        decays: Whether the rate falls in the course of the run.
        shuffled: Whether the order of the images changes.
        seeded: Whether the random numbers can be had again.
        frozen_at_random: Whether layers are frozen that have never been trained.

    Returns:
        One sentence each; none when there is nothing to remark.
    """
    found = []
    if batch < SMALLEST_BATCH:
        found.append(
            f"a batch of {batch} is small: below {SMALLEST_BATCH} gradients are noisy (A11); raise data.batch_size"
        )
    elif batch & (batch - 1):
        above = 1 << batch.bit_length()
        found.append(
            f"a batch of {batch} is no power of two, which devices are built for (A11); try {above // 2} or {above}"
        )
    low, high = USUAL_RATES.get(optimizer, (0.0, float("inf")))
    if not low <= rate <= high:
        found.append(
            f"a rate of {rate:g} is unusual for {optimizer}: {low:g} to {high:g} is common (A13); was model.lr meant so?"
        )
    if not decays:
        found.append(
            "the rate does not decay in the course of the run (A13); model.schedule: project.optim.Cosine lowers it"
        )
    if not shuffled:
        found.append(
            "the images are not shuffled (A9): every epoch sees them in one order; data.sampler: shuffle is usual"
        )
    if not seeded:
        found.append("there is no seed (A9): this run cannot be repeated; seed_everything: 0 sets one")
    if frozen_at_random:
        found.append(
            "model.freeze keeps layers that nothing has trained (A21): give model.weights, the ones to start from"
        )
    return found
