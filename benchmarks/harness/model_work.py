"""How much a model computes and reads in a step, counted from its graph: the roofline under the measured times."""

from pathlib import Path
from typing import NamedTuple

from harness.limits import Limits


class ModelWork(NamedTuple):
    """What one pass through a model takes, attention left out."""

    layer_weights: int
    """Each is multiplied and added once for every token."""
    vocabulary_weights: int
    """Of the last projection: once for every sampled token."""
    weight_bytes: int
    """Read once a step, as the file holds them."""

    def limit_s(self, num_tokens: int, num_sampled: int, kv_bytes: float, limits: Limits) -> float:
        """Return the time that no step over so many tokens can beat: all arithmetic at peak, or all bytes read once."""
        flops = 2 * (self.layer_weights * num_tokens + self.vocabulary_weights * num_sampled)
        return max(flops / limits.flops_per_s, (self.weight_bytes + kv_bytes) / limits.read_bytes_per_s)


def count_work(model_dir: Path) -> ModelWork:
    """Count the weights of all matrix products in the OpenVINO model of `model_dir`."""
    import openvino as ov  # noqa: PLC0415  a second that --help does not need

    model = ov.Core().read_model(model_dir / "openvino_model.xml")
    vocab_size = model.outputs[0].partial_shape[-1].get_length()
    in_layers = in_vocabulary = 0
    for operation in model.get_ops():
        if operation.get_type_name() != "MatMul" or operation.input(1).get_partial_shape().is_dynamic:
            continue  # one of activations: attention
        shape = list(operation.input(1).get_shape())
        if len(shape) != 2:  # rotary frequencies
            continue
        if vocab_size in shape:
            in_vocabulary += shape[0] * shape[1]
        else:
            in_layers += shape[0] * shape[1]
    return ModelWork(in_layers, in_vocabulary, (model_dir / "openvino_model.bin").stat().st_size)
