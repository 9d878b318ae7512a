"""Closed-form decoders: exact where the model holds, and nothing from noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eeg_encoder.errors import InputError
from eeg_encoder.recipes.encoding_model import EncodingModel, shrink_singular_values

N, CHANNELS, SAMPLES, P = 1500, 4, 12, 20


def linear_world(noise: float, gallery: int = 60, repetitions: int = 4, seed: int = 0):
    """Signals linear in embeddings of unequal variance, with correlated noise."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g)

    scale = torch.linspace(3, 0.3, P)
    mapping = normal(P, 6) @ normal(6, CHANNELS * SAMPLES) / scale[:, None]
    colour = normal(CHANNELS * SAMPLES, CHANNELS * SAMPLES) / 7
    train, shown = 5 + scale * normal(N, P), 5 + scale * normal(gallery, P)

    def seen(pictures, averaged):
        error = noise / averaged**0.5 * normal(len(pictures), CHANNELS * SAMPLES) @ colour
        return (1 + (pictures - 5) @ mapping + error).reshape(-1, CHANNELS, SAMPLES)

    return train, seen(train, repetitions), shown, seen(shown, 20)


def top1(scores):
    return float((scores.argmax(1) == torch.arange(len(scores))).float().mean())


def test_pictures_are_identified():
    train, signals, gallery, test = linear_world(noise=20.0)
    model = EncodingModel.fit(signals, train, averaged=4)
    found = top1(model.scores(test, gallery))
    centred = train - train.mean(0)
    x = torch.cat([signals.flatten(1), torch.ones(N, 1)], dim=1)
    ridge = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]), x.T @ centred)
    guess = torch.cat([test.flatten(1), torch.ones(len(test), 1)], dim=1) @ ridge
    plain = torch.nn.functional.cosine_similarity(
        guess[:, None], (gallery - train.mean(0))[None], dim=2
    )
    assert found > 0.5
    assert found > top1(plain) + 0.1


def test_scores_are_log_likelihoods():
    train, signals, gallery, test = linear_world(noise=20.0)
    model = EncodingModel.fit(signals, train)
    predicted = (gallery - model.centre) @ model.basis @ model.map
    x = torch.linalg.solve(model.whiten, (test.flatten(1) - model.mean).T).T
    expected = -0.5 * ((x[:, None] - predicted) ** 2).sum(2)
    found = model.scores(test, gallery)
    torch.testing.assert_close(
        found - found.mean(1, keepdim=True),
        expected - expected.mean(1, keepdim=True),
        atol=1e-2,
        rtol=1e-3,
    )


def test_rank_is_found():
    train, signals, *_ = linear_world(noise=2.0)
    assert EncodingModel.fit(signals, train).rank == 6


def test_settings_are_selected_on_training_rows():
    """The signal is in the first half and in the leading components: both are found."""
    train, signals, gallery, test = linear_world(noise=20.0)
    g = torch.Generator().manual_seed(5)
    padded, shown = (
        torch.cat([x, 10 * torch.randn(len(x), CHANNELS, SAMPLES, generator=g)], dim=2)
        for x in (signals, test)
    )
    chosen = EncodingModel.fit_selected(padded, train, spans=(1.0, 0.5), steps=(1,))
    assert chosen.last == SAMPLES
    whole = EncodingModel.fit(padded, train)
    assert top1(chosen.scores(shown, gallery)) >= top1(whole.scores(shown, gallery))


def test_samples_are_averaged_in_steps():
    train, signals, gallery, test = linear_world(noise=2.0)
    model = EncodingModel.fit(signals, train, last=10, step=3)
    assert model.mean.shape == (CHANNELS * 3,)
    changed = test.clone()
    changed[:, :, 9:] += 100
    torch.testing.assert_close(model.scores(changed, gallery), model.scores(test, gallery))


def test_noise_leaves_nothing():
    train, signals, gallery, test = linear_world(noise=20.0)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    model = EncodingModel.fit(signals, train[order])
    assert model.rank <= 1
    assert top1(model.scores(test, gallery)) < 0.15


def test_embedding_is_the_posterior_mean():
    """More trust in the signal moves the embedding from the mean of all pictures to the picture."""
    train, signals, gallery, test = linear_world(noise=20.0)
    model = EncodingModel.fit(signals, train, averaged=4)
    error = {
        n: ((model.embed(test, averaged=n) - gallery) ** 2).sum(1).mean() for n in (0.01, 20, 4000)
    }
    assert error[20] < error[0.01]
    assert error[20] < error[4000]
    nothing = model.embed(test, averaged=1e-6)
    torch.testing.assert_close(nothing, model.centre.expand_as(nothing), atol=1e-2, rtol=1e-2)


def test_shrinking_comes_nearer_to_the_truth():
    g = torch.Generator().manual_seed(0)
    truth = torch.randn(30, 3, generator=g) @ torch.randn(3, 200, generator=g) * 0.1
    estimate = truth + torch.randn(30, 200, generator=g) / 500**0.5
    shrunk, rank = shrink_singular_values(estimate, 500)
    assert rank == 3
    assert (shrunk - truth).norm() < 0.5 * (estimate - truth).norm()
    assert shrink_singular_values(torch.randn(30, 200, generator=g) / 500**0.5, 500)[1] <= 1


def test_rows_that_do_not_match_are_named():
    with pytest.raises(InputError, match="20 signals, 19 embeddings"):
        EncodingModel.fit(torch.randn(20, 2, 3), torch.randn(19, 4))
    with pytest.raises(InputError, match="16 or more"):
        EncodingModel.fit(torch.randn(8, 2, 3), torch.randn(8, 4))


def two_classes(n: int = 200, strength: float = 0.6, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = np.tile([0, 1], n // 2)
    time = np.arange(100) / 200
    wave = np.exp(-0.5 * ((time - 0.25) / 0.05) ** 2)
    mixing = np.random.default_rng(7).normal(size=(4, 4))
    signals = mixing @ generator.normal(size=(n, 4, 100))
    signals += (
        strength
        * np.where(labels, 1.0, -1.0)[:, None, None]
        * (np.array([1.0, 0.5, 0.0, -1.0])[:, None] * wave)
    )
    return signals, labels


def decoders():
    pytest.importorskip("sklearn")
    from eeg_encoder.recipes import LinearDecoder, RiemannianCommittee, RiemannianDecoder

    return {
        "lda": LinearDecoder,
        "riemannian": RiemannianDecoder,
        "electrodes": lambda: RiemannianDecoder(0),
        "committee": lambda: RiemannianCommittee(200.0, windows=(None, (0.1, 0.4))),
    }


def auc(scores, labels):
    better = scores[labels == 1][:, None] > scores[labels == 0]
    return better.mean()


@pytest.mark.parametrize("name", ["lda", "riemannian", "electrodes", "committee"])
def test_two_classes_are_told_apart(name):
    from eeg_encoder.recipes.riemannian import out_of_sample

    signals, labels = two_classes()
    fold = np.arange(len(labels)) // 50
    assert auc(out_of_sample(decoders()[name], signals, labels, fold), labels) > 0.8
    shuffled = np.random.default_rng(3).permutation(labels)
    chance = auc(out_of_sample(decoders()[name], signals, shuffled, fold), shuffled)
    assert 0.35 < chance < 0.65


def test_tangent_vectors_have_the_length_of_the_logarithm():
    from eeg_encoder.recipes import ErpCovariances

    signals, labels = two_classes(40)
    features = ErpCovariances(2).fit(signals, labels)
    vectors = features.transform(signals)
    assert vectors.shape == (40, 8 * 9 // 2)
    np.testing.assert_allclose(vectors.mean(0), 0, atol=0.3)
    whitened = features.centre @ features.covariances(signals) @ features.centre
    distance = np.sqrt((np.log(np.linalg.eigvalsh(whitened)) ** 2).sum(1))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), distance, rtol=1e-6)


def test_committee_does_not_depend_on_units_or_outliers():
    signals, labels = two_classes()
    committee = decoders()["committee"]().fit(signals, labels)
    scaled = decoders()["committee"]().fit(1e-6 * signals, labels)
    np.testing.assert_allclose(
        scaled.decide(1e-6 * signals), committee.decide(signals), rtol=1e-3, atol=1e-4
    )
    broken = signals.copy()
    broken[0, 0, 10] = 1e6
    assert np.isfinite(committee.decide(broken)).all()
    with pytest.raises(InputError, match="two classes"):
        decoders()["committee"]().fit(signals, np.zeros(len(labels)))
