import pytest
import torch

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.prompts import PromptProcessor, StableDiffusionPromptProcessor
from threestudio_eeg.view_encoder import ViewEncoder
from threestudio_eeg.view_tokens import append_view_tokens


class ByText(PromptProcessor):
    """Gives every distinct text its own constant embedding (3, 4)."""

    def encode(self, texts):
        self.texts = list(dict.fromkeys(texts))
        values = torch.tensor([float(self.texts.index(text)) for text in texts])
        return values[:, None, None].expand(-1, 3, 4).contiguous()


def looked_up(processor, elevation, azimuth, **kwargs):
    ele, azi = torch.tensor([elevation]), torch.tensor([azimuth])
    both = processor().get_text_embeddings(ele, azi, torch.ones(1), **kwargs)
    return [processor.texts[int(half[0, 0])] for half in both]


@pytest.mark.parametrize(
    ("elevation", "azimuth", "view"),
    [
        (0.0, 0.0, "front"),
        (0.0, 44.0, "front"),
        (0.0, -44.0, "front"),
        (0.0, 350.0, "front"),
        (0.0, 46.0, "side"),
        (0.0, -90.0, "side"),
        (0.0, 136.0, "back"),
        (0.0, 180.0, "back"),
        (0.0, -170.0, "back"),
        (0.0, 190.0, "back"),
        (61.0, 0.0, "overhead"),
        (59.0, 0.0, "front"),
    ],
)
def test_the_camera_chooses_the_wording(elevation, azimuth, view):
    processor = ByText({"prompt": "a mug"})
    assert looked_up(processor, elevation, azimuth) == [f"a mug, {view} view", ""]


def test_wording_options():
    front = ByText({"prompt": "a mug", "view_dependent_prompt_front": True})
    assert looked_up(front, 0.0, 0.0)[0] == "front view of a mug"
    plain = ByText({"prompt": "a mug", "view_wording": False, "prompt_back": "its back"})
    assert looked_up(plain, 0.0, 0.0)[0] == "a mug"
    assert looked_up(plain, 0.0, 180.0)[0] == "its back"
    assert looked_up(front, 0.0, 0.0, view_dependent_prompting=False) == ["a mug", ""]


def test_directions_are_in_threestudios_order():
    output = ByText({})()
    assert output.direction2idx == {"side": 0, "front": 1, "back": 2, "overhead": 3}


def test_debiasing_is_refused():
    with pytest.raises(InputError, match="use_prompt_debiasing"):
        ByText({"use_prompt_debiasing": True})


def test_view_tokens_follow_the_camera_in_the_conditional_half_only():
    torch.manual_seed(0)
    encoder = ViewEncoder(4, n_tokens=2, hidden=8)
    cameras = torch.tensor([0.0, 10.0]), torch.tensor([0.0, 90.0]), torch.tensor([2.0, 2.0])
    tokens = append_view_tokens(torch.zeros(4, 3, 4), encoder, *cameras)
    assert tokens.shape == (4, 5, 4)
    assert torch.equal(tokens[:2, 3:], encoder(*cameras))
    assert torch.equal(tokens[2:, 3:], encoder.null_tokens.expand(2, -1, -1))
    without = append_view_tokens(torch.zeros(4, 3, 4), encoder, *cameras, False)
    assert torch.equal(without[:, 3:], encoder.null_tokens.expand(4, -1, -1))
    assert not tokens.requires_grad or encoder.null_tokens.requires_grad
    assert append_view_tokens(tokens, None, *cameras) is tokens


def perp_neg(azimuth, elevation=0.0):
    processor = ByText({"prompt": "a mug", "use_perp_neg": True})
    camera = torch.tensor([elevation]), torch.tensor([azimuth]), torch.ones(1)
    embeddings, weights = processor().get_text_embeddings_perp_neg(*camera)
    side, front, back, over = (processor.texts.index(text) for text in processor.prompts_vd)
    return embeddings[:, 0, 0].tolist(), weights[0].tolist(), (side, front, back, over)


def decay(f, r):
    a, b, c = f
    return -(a * torch.tensor(-b * r).exp().item() + c)


def test_perp_neg_between_front_and_side():
    embeddings, weights, (side, front, _, _) = perp_neg(30.0)
    r = 1 - 30 / 90
    assert embeddings[0] == pytest.approx(r * front + (1 - r) * side)
    assert embeddings[2:] == [front, side]
    fs = (4, 0.5, -2.426)
    assert weights == pytest.approx([decay(fs, r), decay(fs, 1 - r)])


def test_perp_neg_between_side_and_back():
    embeddings, weights, (side, front, back, _) = perp_neg(-120.0)
    r = 2 - 120 / 90
    assert embeddings[0] == pytest.approx(r * side + (1 - r) * back)
    assert embeddings[2:] == [side, front]
    assert weights == pytest.approx([decay((1, 0.5, -0.606), r), decay((1, 0.5, 0.967), r)])


def test_perp_neg_from_above_pushes_nothing_away():
    embeddings, weights, (*_, over) = perp_neg(0.0, 80.0)
    assert embeddings[0] == over
    assert weights == [0, 0]


def test_stable_diffusion_prompts_come_from_the_pipeline_folder(tmp_path):
    from tests.tiny import tiny_pipeline
    from threestudio_eeg.pipeline import load_pipeline

    folder = tiny_pipeline(tmp_path / "pipeline")
    config = {"prompt": "a red mug", "pretrained_model_name_or_path": str(folder)}
    output = StableDiffusionPromptProcessor(config)()
    camera = torch.tensor([0.0]), torch.tensor([180.0]), torch.tensor([2.0])
    found = output.get_text_embeddings(*camera)
    pipeline = load_pipeline(folder, device=output.text_embeddings.device)
    expected = pipeline.encode_text(["a red mug, back view", ""])
    assert torch.allclose(found[:, :8], expected, atol=1e-6)
    assert torch.allclose(found[:1, 8:], pipeline.view_encoder(*camera))
    assert torch.allclose(found[1, 8:], pipeline.view_encoder.null_tokens)
    assert not found.requires_grad
