"""The ranking loss as one would write it from its definition: one softmax for each label."""

from carvana_tf import devices  # noqa: F401  (starts the backend quietly)
from harness import Rounds
from inputs import random_labels


def differentiate(rounds: Rounds, batch_size: int, classes: int, labels: int, steps: int) -> None:
    """Computes the loss of a batch and its gradient; arguments as of `ours.label_losses`."""
    import tensorflow as tf

    truth, values = random_labels(batch_size, classes, labels)
    logits = tf.constant(values)
    for _ in rounds:
        for _ in range(steps):
            with tf.GradientTape() as tape:
                tape.watch(logits)
                costs = []
                for known, row in zip(truth, tf.unstack(logits), strict=True):
                    negatives = tf.boolean_mask(row, known == 0)
                    for label in known.nonzero()[0]:
                        rivals = tf.concat([row[label, None], negatives], 0)
                        costs.append(tf.reduce_logsumexp(rivals) - row[label])
                value = tf.add_n(costs) / len(costs)
            tape.gradient(value, logits).numpy()
