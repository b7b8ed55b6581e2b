"""Is everything ready for a training? Images, labels, the start, the learning rate and the plan."""
