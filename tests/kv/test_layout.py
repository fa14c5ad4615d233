import pytest

from diptych.core.errors import EngineError
from diptych.core.ids import BlockId
from diptych.kv.layout import CacheTensor, KVLayout


def tensors(num_layers: int, shape: tuple[int, ...] = (3, 32, 64), dtype: str = "bf16") -> list[CacheTensor]:
    return [CacheTensor(f"{kind}_{i}", shape, dtype) for i in range(num_layers) for kind in ("key", "value")]


def test_equal_pieces_form_one_region() -> None:
    layout = KVLayout.of(tensors(30), block_size=32)
    assert len(layout.regions) == 1
    assert layout.index_scale == 60
    assert layout.block_bytes == 60 * 3 * 32 * 64 * 2
    assert layout.token_bytes == layout.block_bytes / 32
    assert layout.block_spans(BlockId(5), num_blocks=8) == [(5 * layout.block_bytes, layout.block_bytes)]


def test_pieces_of_two_sizes_form_two_regions_one_after_the_other() -> None:
    keys = [CacheTensor(f"key_{i}", (2, 8, 4), "u8") for i in range(3)]
    values = [CacheTensor(f"value_{i}", (2, 8, 6), "u8") for i in range(3)]
    layout = KVLayout.of([*values, *keys], block_size=8)
    assert layout.index_scale == 3
    assert layout.block_bytes == 3 * 64 + 3 * 96
    assert layout.region_offsets(num_blocks=10) == [0, 10 * 3 * 64]
    assert layout.block_spans(BlockId(2), num_blocks=10) == [(2 * 192, 192), (1920 + 2 * 288, 288)]


@pytest.mark.parametrize("sizes", [(4,), (4, 6)])
def test_spans_of_all_blocks_tile_the_segment(sizes: tuple[int, ...]) -> None:
    layout = KVLayout.of([CacheTensor(f"t{i}{n}", (n,), "f32") for i in range(2) for n in sizes], block_size=1)
    spans = sorted(span for block_id in range(5) for span in layout.block_spans(BlockId(block_id), 5))
    end = 0
    for offset, num_bytes in spans:
        assert offset == end
        end += num_bytes
    assert end == 5 * layout.block_bytes


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (32, 1), (33, 2)])
def test_blocks_for_tokens_rounds_up(num_tokens: int, num_blocks: int) -> None:
    assert KVLayout.of(tensors(1), block_size=32).num_blocks_for(num_tokens) == num_blocks


def test_fingerprint_tells_layouts_apart() -> None:
    layouts = [
        KVLayout.of(tensors(2), 32),
        KVLayout.of(tensors(3), 32),
        KVLayout.of(tensors(2), 16),
        KVLayout.of(tensors(2, dtype="f16"), 32),
        KVLayout.of(tensors(2, shape=(32, 3, 64)), 32),
        KVLayout.of(list(reversed(tensors(2))), 32),
    ]
    assert len({layout.fingerprint for layout in layouts}) == len(layouts)
    assert KVLayout.of(tensors(2), 32).fingerprint == layouts[0].fingerprint


def test_models_that_one_table_cannot_address_are_refused() -> None:
    with pytest.raises(EngineError, match="different shapes"):
        KVLayout.of([*tensors(2), CacheTensor("odd", (1, 2, 3), "f32")], block_size=32)
    with pytest.raises(EngineError, match="no KV cache inputs"):
        KVLayout.of([], block_size=32)
    with pytest.raises(EngineError, match="KV caches of u4 are not supported"):
        KVLayout.of(tensors(1, dtype="u4"), block_size=32)
