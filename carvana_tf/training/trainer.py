"""The model that is compiled and fitted: the network's own layers, some computed otherwise.

Keras makes BatchNormalization and UpSampling2D of many operations, which on a processor
take as long as the convolutions. Here the layers of a network are called once more, those
two kinds through single operations of the backend, bilinear upsampling so that a graph takes
photos of all sizes, narrow strided 1x1 convolutions around a bug of oneDNN, see
`SubsampledConv2D`, and on older processors wide ones with a faster gradient, see
`MatmulGradientConv2D`. All variables are the network's own: what is trained is the network, and
what is saved is made of Keras' own layers alone.
"""

from typing import Any

import keras
from keras import ops

from carvana_tf import devices, replicas
from carvana_tf.models.cloning import AnySizeUpSampling2D
from carvana_tf.training import optimizers


def build(network: keras.Model, *, fuse: bool = True) -> keras.Model:
    """A model around the layers of a network, for `compile`, `fit` and validation.

    Args:
        network: A functional model; it never hears of losses and optimizers.
        fuse: Whether to replace layers where the backend has something better; the results
            differ by rounding only.

    Returns:
        A model with the variables of `network`, in the same order. Which of its layers
        are trainable is decided now.
    """
    if replicas.is_divided():
        model = keras.models.clone_model(network, clone_function=_divided)
        return DividedModel(model.input, model.output)
    if fuse and keras.backend.backend() == "tensorflow":
        return keras.models.clone_model(network, clone_function=_replaced)
    made = BatchFigures if keras.backend.backend() == "jax" else keras.Model
    return made(network.input, network.output)


class BatchFigures(keras.Model):
    """On JAX, a model whose metrics are of the last training batch alone.

    There `fit` hands the metrics' values from step to step, and `reset_metrics` does not reach
    them: they would be means since the last time that they were written into the variables.
    """

    def train_step(self, state, data):
        """As `keras.Model.train_step`, with metrics that are reset."""
        *values, _ = state
        reset = [value for metric in self.metrics for value in metric.stateless_reset_state()]
        return super().train_step((*values, reset), data)


class DividedModel(keras.Model):
    """With TensorFlow, a model that computes each step on several devices at once.

    The gradients of all devices are added up before the optimizer gets them: it clips, scales and
    accumulates them as on one device, and its variables are there once.
    """

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.compile`, without XLA, which compiles for one device."""
        super().compile(*args, **kwargs, jit_compile=False)

    def train_step(self, data: Any) -> dict[str, Any]:
        """As `keras.Model.train_step`, of a batch that can be divided."""
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        weights = self.trainable_weights

        def part(x: Any, y: Any) -> tuple[Any, Any]:
            def scaled_loss() -> Any:
                outputs = self(x, training=True)
                # Keras divides it by the number of devices.
                loss = self.compute_loss(x, y, outputs, training=True)
                return self.optimizer.scale_loss(loss), (loss, outputs)

            gradients, (loss, outputs) = replicas.gradients(scaled_loss, weights)
            return (gradients, loss), outputs

        (gradients, loss), outputs = replicas.divided(part, x, y)
        optimizers.apply(self.optimizer, gradients, weights)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
        return self.compute_metrics(x, y, outputs)

    def predict_step(self, data: Any) -> Any:
        """As `keras.Model.predict_step`, of a batch that can be divided."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        _, outputs = replicas.divided(lambda x: ((), self(x, training=False)), x)
        return outputs


class _InPlaceOf(keras.layers.Layer):
    """Computes what another layer computes, in its own way."""

    def __init__(self, layer: Any) -> None:
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.layer = layer  # its variables become ours
        self.built = True


class _Normalization(_InPlaceOf):
    """A BatchNormalization layer that is trained by `statistics`; otherwise it is that layer."""

    def statistics(self, inputs: Any) -> tuple[Any, Any, Any]:
        """The normalised inputs, and the mean and the variance of the batch."""
        raise NotImplementedError

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """As `BatchNormalization.call`."""
        layer = self.layer
        if mask is not None or not (training and layer.trainable):
            return layer(inputs, training=training, mask=mask)
        outputs, mean, variance = self.statistics(inputs)
        for average, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            average.assign(average * layer.momentum + value * (1.0 - layer.momentum))
        return outputs


class DividedBatchNormalization(_Normalization):
    """Computes what a BatchNormalization layer computes of the whole batch, with its variables."""

    def statistics(self, inputs: Any) -> tuple[Any, Any, Any]:
        """Those of the parts of all devices."""
        layer = self.layer
        x = ops.cast(inputs, "float32")
        axis = layer.axis % x.ndim
        mean, variance = replicas.moments(x, [each for each in range(x.ndim) if each != axis])
        outputs = ops.batch_normalization(
            x, mean, variance, axis, layer.beta, layer.gamma, layer.epsilon
        )
        return ops.cast(outputs, self.compute_dtype), mean, variance


class DividedDropout(_InPlaceOf):
    """Drops what a Dropout layer drops of the whole batch, with that layer's generator."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        """As `Dropout.call`."""
        if not training or not self.layer.rate:
            return inputs
        return inputs * replicas.part_of(lambda ones: self.layer(ones, training=True), inputs)


class FusedBatchNormalization(_Normalization):
    """Computes what a BatchNormalization layer computes, with that layer's variables."""

    def statistics(self, inputs: Any) -> tuple[Any, Any, Any]:
        """By one operation."""
        layer = self.layer
        channels = inputs.shape[-1]
        gamma = layer.gamma if layer.scale else ops.ones(channels, "float32")
        beta = layer.beta if layer.center else ops.zeros(channels, "float32")
        return devices.fused_batch_norm(inputs, gamma, beta, layer.epsilon)


class FusedUpSampling2D(keras.layers.Layer):
    """Computes what `UpSampling2D(2)` computes."""

    def call(self, inputs: Any) -> Any:
        """[B, H, W, C] to [B, 2H, 2W, C]."""
        return devices.double_size(inputs)


class SubsampledConv2D(_InPlaceOf):
    """Computes what a 1x1 Conv2D with strides computes, with that layer's variables.

    It takes every n-th pixel before the convolution, not within it. oneDNN, which TensorFlow
    uses on processors, writes past its buffer in the gradient of such a layer's kernel where
    the layer has fewer input channels than `NARROW`; see docs/upstream.md.
    """

    NARROW = 16
    """The channels of one block of oneDNN with AVX-512; with AVX2 it has 8."""

    @classmethod
    def is_needed(cls, layer: keras.layers.Conv2D) -> bool:
        """Whether oneDNN computes the gradient of this layer's kernel with the bug."""
        strided = layer.kernel_size == (1, 1) and layer.strides != (1, 1) and layer.groups == 1
        return strided and layer.kernel.shape[-2] < cls.NARROW

    def call(self, inputs: Any) -> Any:
        """[B, H, W, C] to [B, ceil(H / strides), ceil(W / strides), filters]."""
        layer = self.layer
        rows, columns = layer.strides
        # One pixel needs no padding, so "same" and "valid" are the same.
        outputs = ops.conv(inputs[:, ::rows, ::columns], layer.kernel, 1, "valid", "channels_last")
        return layer.activation(_biased(layer, outputs))


class MatmulGradientConv2D(_InPlaceOf):
    """Computes what a Conv2D computes; the gradient of its kernel is matrix products.

    See `devices.convolve`.
    """

    WIDE = 32
    """From so many input channels or filters on it is faster."""

    @classmethod
    def is_faster(cls, layer: keras.layers.Conv2D) -> bool:
        """Whether to use it for this layer."""
        fits = layer.strides == (1, 1) and layer.dilation_rate == (1, 1) and layer.groups == 1
        fits = fits and layer.padding == "same" and layer.data_format == "channels_last"
        rows, columns, *channels = layer.kernel.shape
        odd = rows * columns > 1 and rows % 2 == columns % 2 == 1
        wide = max(channels) >= cls.WIDE and layer.compute_dtype == "float32"
        return fits and odd and wide and devices.has_slow_kernel_gradients()

    def call(self, inputs: Any) -> Any:
        """[B, H, W, C] to [B, H, W, filters]."""
        layer = self.layer
        return layer.activation(_biased(layer, devices.convolve(inputs, layer.kernel)))


def _biased(layer: keras.layers.Conv2D, outputs: Any) -> Any:
    """What the convolution of a layer gives, with its bias."""
    return outputs if layer.bias is None else ops.add(outputs, layer.bias)


def _adds_loss(layer: Any) -> bool:
    """Whether calling the layer adds to the loss, unlike calling another one in its place."""
    return getattr(layer, "activity_regularizer", None) is not None


def _divided(layer: Any) -> Any:
    """As `_replaced`, where several devices compute a step."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return DividedBatchNormalization(layer)
    if isinstance(layer, keras.layers.Dropout):
        return DividedDropout(layer)
    return _replaced(layer)


def _replaced(layer: Any) -> Any:
    """What takes the place of a layer in the trainer: itself, or one that computes the same."""
    kind = type(layer)
    if _adds_loss(layer):
        return layer
    if kind is keras.layers.UpSampling2D and layer.interpolation != "nearest":
        return AnySizeUpSampling2D.from_config(layer.get_config())
    if not devices.has_fused_operations():
        return layer
    if kind is keras.layers.Conv2D:
        if SubsampledConv2D.is_needed(layer):
            return SubsampledConv2D(layer)
        return MatmulGradientConv2D(layer) if MatmulGradientConv2D.is_faster(layer) else layer
    if kind is keras.layers.BatchNormalization:
        fits = layer.input_spec.ndim == 4 and layer.axis in (-1, 3)
        fits = fits and not (layer.renorm or layer.synchronized)
        return FusedBatchNormalization(layer) if fits else layer
    if kind is keras.layers.UpSampling2D:
        fits = layer.size == (2, 2) and layer.data_format == "channels_last"
        return FusedUpSampling2D(name=layer.name, dtype=layer.dtype_policy) if fits else layer
    return layer
