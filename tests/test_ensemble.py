import pytest
import torch

from model.layers import fuse_for_inference
from model.scaledense import ScaleDense
from model.tsan import TSAN, Ensemble, SecondStage


def test_ages_of_an_ensemble_are_the_means_of_its_members_fused_or_not():
    members = [TSAN(ScaleDense(mean_age=age), SecondStage()).eval() for age in (40, 50, 70)]
    image, sex = torch.randn(2, 1, 32, 32, 32), torch.tensor([0, 1])
    with torch.inference_mode():
        found = [member.predict(image, sex) for member in members]
        ages = Ensemble(members).eval().predict(image, sex)
        fused = fuse_for_inference(Ensemble(members).eval())(image, sex)
    assert set(ages) == {"stage_one_age", "rounded_age", "predicted_age"}
    for name, age in ages.items():
        torch.testing.assert_close(age, sum(one[name] for one in found) / 3)
    torch.testing.assert_close(fused, ages["predicted_age"], rtol=1e-4, atol=1e-3)


def test_an_ensemble_is_of_one_stage():
    with pytest.raises(ValueError, match="networks of one stage expected"):
        Ensemble([ScaleDense(), TSAN(ScaleDense(), SecondStage())])
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])
