"""Hard-example replay: the worst of each ten batches is trained on once more."""

import keras
import numpy as np

from carvana_tf.data.loader import TrainingSet

EVERY = 10


class Replay(keras.callbacks.Callback):
    """Repeats the batch of highest loss after each `EVERY` batches.

    Of the 1st-place solution's "albu" part. What is repeated depends on the losses alone, and those
    of the batches since the last repetition are kept with the run's state, so that an
    interruption changes nothing.
    """

    def __init__(self, training: TrainingSet, losses: list[float], step: int) -> None:
        """Goes on where a run stands.

        Args:
            training: Makes the same batch again.
            losses: Of the batches since the last repetition; changed in place.
            step: Number of the next batch.
        """
        super().__init__()
        self._training = training
        self._losses = losses
        self._step = step

    def on_train_batch_end(self, batch, logs=None):
        """Notes the loss of the batch, which `logs` holds alone, and repeats the worst."""
        self._step += 1
        self._losses.append(float((logs or {})["loss"]))
        if len(self._losses) == EVERY:
            worst = self._step - EVERY + int(np.argmax(self._losses))
            self._losses.clear()
            # JAX trains copies, which go into the variables at the end of an epoch.
            getattr(self.model, "jax_state_sync", lambda: None)()
            self.model.train_on_batch(*self._training.batch(worst))
