"""The config: a wrong one is refused, an older one is read; the released model is in test_checkpoint.py."""

import pytest

from mllm.config import MLLMConfig

GRID = {
    **{"image_layout": "grid", "max_grid_side": 10, "image_size": 128, "patch_size": 16},
    **{"new_line_id": 10, "first_row_size_id": 11, "first_column_size_id": 21},
}


def test_a_config_that_cannot_be_built_is_refused() -> None:
    square = {"image_size": 128, "patch_size": 16}
    for fields in (
        *({"head_type": "rnn"}, {"prompt_style": "latin"}, {"image_layout": "spiral"}, {"embedding_context": "none"}),
        *({"image_size": 100}, {"num_codebooks": 0}, {"embedder_heads": 3}, {"num_classes": 3}),
        *({"begin_plan_id": 3, "prompt_style": "unitok"}, {"planner": "os.system"}),
        *({"num_codebooks": "8"}, {"tasks": "draw"}, {"image_guidance": "high"}, {"sizes": [256, 256]}, {"planner": 3}),
        *({"head_num_heads": 7}, {"image_position_embedding": True, "image_layout": "grid"}),
        {"image_source_embedding": True, "prompt_style": "class"},
        *({**GRID, "sizes": [[128, 128], size]} for size in ([150, 128], [0, 128], [176, 128], [128], [128] * 3)),
        {**square, "sizes": [[128, 128], [128, 96]]},
    ):
        with pytest.raises(ValueError):
            MLLMConfig(**fields)
    assert MLLMConfig(**GRID, sizes=[[128, 128], [160, 32]]).sizes == [[128, 128], [160, 32]]
    assert MLLMConfig(**square, sizes=[[128, 128]]).sizes == [[128, 128]]
    assert MLLMConfig(image_guidance=3, z_loss_weight=0, head_num_heads=16).image_guidance == 3, "3 is a float in JSON"


def test_configs_of_earlier_versions_are_read_and_written_under_present_names() -> None:
    old = {"begin_outline_id": 7, "image_places": True, "embedding_context": "isolated"}
    for config in (MLLMConfig(**old), MLLMConfig.from_dict(old)):
        fields = config.to_dict()
        assert (config.begin_plan_id, config.image_position_embedding, config.embedding_context) == (7, True, "current")
        assert fields["begin_plan_id"] == 7 and fields["image_position_embedding"] is True
        assert not old.keys() & fields.keys() - {"embedding_context"} and fields["embedding_context"] == "current"
