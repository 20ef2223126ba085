"""Losses of labels with their gradients, compiled as a training step is."""

from carvana_tf import devices  # noqa: F401  (starts the backend quietly)
from carvana_tf.tasks.labels import losses
from harness import Rounds
from inputs import random_labels


def differentiate(
    rounds: Rounds, loss: str, batch_size: int, classes: int, labels: int, steps: int
) -> None:
    """Computes the mean loss of a batch and its gradient with respect to the logits.

    Args:
        rounds: What to measure: `steps` batches each.
        loss: As `--loss_function` has it.
        batch_size: Photos per batch.
        classes: Classes of a photo.
        labels: Labels of a photo at most.
        steps: How often, in a round.
    """
    import tensorflow as tf

    function = losses.parse(loss)

    @tf.function
    def step(truth, logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = tf.reduce_mean(function(truth, logits))
        return value, tape.gradient(value, logits)

    truth, logits = map(tf.constant, random_labels(batch_size, classes, labels))
    for _ in rounds:
        for _ in range(steps):
            step(truth, logits)[1].numpy()
