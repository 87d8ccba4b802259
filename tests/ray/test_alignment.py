"""A teacher that always predicts a planted next token, through prepare, capture, cache and loss.

Any shift by one, any leak across packed documents or into masked positions moves a planted token.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from kdscale.cache.read.reader import CacheReader
from kdscale.config import load_config
from kdscale.data.tokenizer import train_tokenizer
from kdscale.distill.batches import to_device
from kdscale.distill.objective import DistillationLoss
from kdscale.models.head import ModelWithHead
from kdscale.store import open_store
from kdscale.types import Head, SparseTargets
from tests.runs import run_kdscale, tiny_config, write_config, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200), pytest.mark.usefixtures("shared_ray")]
VOCAB = 300


def planted(token: np.ndarray) -> np.ndarray:
    """Return the token that the teacher predicts after `token`, whatever came before."""
    return (token * 7 + 11) % VOCAB


def save_planted_teacher(folder: Path) -> None:
    """Save a model of one-hot embeddings, idle layers and a head that gives the planted token."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=VOCAB,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(VOCAB))
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        tokens = np.arange(VOCAB)
        # The norm scales a one-hot vector to sqrt(VOCAB) = 17: logits of 26 against 0.
        model.lm_head.weight[torch.from_numpy(planted(tokens)), torch.from_numpy(tokens)] = 1.5
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def planted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    corpus = write_corpus(folder / "corpus", ["bisect", "colorsys", "fnmatch", "queue"])
    # Short documents too, so that rows hold several.
    for index in range(60):
        (corpus / f"short{index}.txt").write_text(f"def f{index}(x):\n    return x + {index} * x\n")
    teacher = folder / "teacher"
    train_tokenizer((p.read_text() for p in sorted(corpus.iterdir())), VOCAB, teacher)
    save_planted_teacher(teacher)
    config = tiny_config(
        corpus,
        str(folder / "output"),
        teacher={"load": str(teacher)},
        data__tokenizer={"kind": "teacher"},
        data__overlap=9,
        cache__sequences=None,
    )
    path = write_config(folder / "planted.yaml", config)
    code, log = run_kdscale("run", str(path), "--until", "cache")
    assert code == 0, log[-4000:]
    return folder


def test_every_cached_target_is_the_planted_token_of_its_position(planted_run: Path) -> None:
    (cache,) = (planted_run / "output" / "cache").iterdir()
    reader = CacheReader(open_store(str(cache)))
    cached = reader.read(np.arange(len(reader)))
    mask, ids, segments = cached.rows.loss_mask, cached.rows.input_ids, cached.rows.segment_ids
    assert (segments.max(axis=1) > 1).sum() >= 10
    assert mask.sum() > 1000
    # A target is the next token of the same document.
    rows, positions = np.nonzero(mask)
    assert positions.max() < ids.shape[1] - 1
    assert (segments[rows, positions] == segments[rows, positions + 1]).all()
    assert (segments[rows, positions] > 0).all()

    targets = reader.codec.decode(torch.from_numpy(cached.payload))
    assert isinstance(targets, SparseTargets)
    best = targets.ids.gather(-1, targets.probs.argmax(-1, keepdim=True))[..., 0].numpy()
    np.testing.assert_array_equal(best[mask], planted(ids)[mask])
    # The planted token has all but 1e-9 of the mass, wherever a target is; nothing else is encoded.
    assert targets.probs.max(-1).values.numpy()[mask].min() > 0.99
    assert not cached.payload[~mask].any()


def test_the_loss_is_zero_for_the_teacher_itself_and_large_for_a_shifted_one(
    planted_run: Path,
) -> None:
    config = load_config(planted_run / "planted.yaml")
    (cache,) = (planted_run / "output" / "cache").iterdir()
    reader = CacheReader(open_store(str(cache)))
    cached = reader.read(np.arange(len(reader) - 24, len(reader)))
    batch = to_device(cached, np.ones(24, dtype=bool), torch.device("cpu"))
    loss = DistillationLoss(config, reader.codec, None)
    model = AutoModelForCausalLM.from_pretrained(planted_run / "teacher")
    trained = ModelWithHead(model, VOCAB)
    targets = int(batch.rows.mask.sum())
    assert loss(trained, batch, 0)[0].item() / targets < 0.05

    with torch.no_grad():
        # A student that is one position late has the planted token of the token before.
        model.lm_head.weight.copy_(model.lm_head.weight[torch.arange(VOCAB).roll(1)])
    assert loss(trained, batch, 0)[0].item() / targets > 10


def test_the_distillation_signal_changes_the_gradient(planted_run: Path) -> None:
    (cache,) = (planted_run / "output" / "cache").iterdir()
    reader = CacheReader(open_store(str(cache)))
    batch = to_device(reader.read(np.arange(4)), np.ones(4, bool), torch.device("cpu"))
    gradients = {}
    for weight in (0.0, 0.5, 1.0):
        path = planted_run / "planted.yaml"
        config = load_config(path, [f"distill.loss.kd_weight.start={weight}"])
        torch.manual_seed(0)
        shape = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
        student = LlamaForCausalLM(shape)
        loss = DistillationLoss(config, reader.codec, None)
        loss(ModelWithHead(student, VOCAB), batch, 0)[0].backward()
        gradients[weight] = student.lm_head.weight.grad.clone()
    assert not torch.allclose(gradients[0.0], gradients[1.0], rtol=0.1)
    # The mix is linear in its weight.
    mean = (gradients[0.0] + gradients[1.0]) / 2
    torch.testing.assert_close(gradients[0.5], mean, rtol=1e-3, atol=1e-3)


def test_masked_and_padded_positions_have_no_gradient(planted_run: Path) -> None:
    (cache,) = (planted_run / "output" / "cache").iterdir()
    reader = CacheReader(open_store(str(cache)))
    config = load_config(planted_run / "planted.yaml")
    cached = reader.read(np.arange(len(reader) - 8, len(reader)))
    batch = to_device(cached, np.ones(8, bool), torch.device("cpu"))
    loss = DistillationLoss(config, reader.codec, None)

    class Constant(ModelWithHead):
        """A parameter for the logits of every position."""

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.logits = torch.nn.Parameter(torch.zeros(8, 64, VOCAB))

        def hidden_and_layers(self, *_: object) -> tuple[torch.Tensor, dict[str, list[object]]]:
            return self.logits, {}

        @property
        def head(self) -> Head:
            return Head(None, None, VOCAB)

    model = Constant()
    loss(model, batch, 0)[0].backward()
    assert model.logits.grad is not None
    touched = (model.logits.grad.abs().sum(-1) > 0).numpy()
    np.testing.assert_array_equal(touched, cached.rows.loss_mask)
