"""Which towers a method can be attached behind."""

import pytest
import torch
from transformers import CLIPVisionModel

from qmop.surgery import compress
from qmop.tiny.configs import vision_config
from tests.fixtures.stock_llava import enliven, stock_llava


def test_a_llava_that_also_reads_the_class_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vision_feature_select_strategy of the model is 'full', but .* 'default'"):
        compress(stock_llava(vision_feature_select_strategy="full"), "average_pool", 16)


def test_a_tower_whose_patches_do_not_cover_the_picture_is_compressed() -> None:
    config = vision_config()
    config.image_size = 100  # 12 patches of 8, and four pixels that none sees, as the tower itself has it
    model = stock_llava()
    model.model.vision_tower, model.config.vision_config = CLIPVisionModel(config), config
    enliven(model, 0)
    pixels = torch.rand(1, 3, 100, 100)
    whole = model.get_image_features(pixels).pooler_output[0]
    assert whole.shape[0] == 144
    with compress(model, "fastervlm", 144):
        assert torch.allclose(model.get_image_features(pixels).pooler_output[0], whole, atol=1e-5)
