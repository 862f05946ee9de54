"""The recipes of training: the value of every setting that no flag gives.

`--recipe NAME` chooses one of them. The flags take their defaults from here, so `--help` and the
scripts, which leave a setting out unless the user edits it, say the same. Some settings belong to a
recipe alone and have no flag. The figures are mean absolute errors of the first stage on OASIS-1 in
years (docs/RESULTS.md), over five folds or, where "n = 123" is said, over three of them.
"""

# Ours, in both stages. The figures are of `rank_weight` 0. Five trainings that differed in nothing
# but seed and machine had 5.30 on average, with an SD of 0.26. Where n = 123, three seeds had 5.56,
# 4.99 and 5.92: rows between these show no difference.
OURS = {
    "epochs": 32,  # 5.02 and 5.21, two seeds on a CPU; 16 epochs: 5.42
    "batch_size": 8,  # scans per step, of all processes together; 16: 5.66 (n = 123)
    "optimizer": "adamw",
    "lr": 2e-3,  # 8 epochs, one fold: 6.76; at 4e-3 7.27
    "weight_decay": 0.01,  # 0.1: 5.42 (n = 123)
    "schedule": "cosine",
    "warmup_epochs": 1,
    "warmup_share": 0.25,  # of `lr`, where the warm-up starts
    "min_lr": 1e-6,  # where the schedule ends
    "ema": 0.99,  # decay per step of the running average of the weights; without: 5.58 (n = 123)
    "stratify": True,  # batches alike in age; without: 5.31 (n = 123); helped in 12 to 24 epochs
    "refresh_statistics": True,  # of the batches, before validation; else ages are 7 to 20 off
    "early_stop": 0,
    "keep": "lowest",
    "augment": "light",
    # A scanner never seen, three seeds, 12 epochs: 6.94; mae 7.22, Huber's 7.15, age bins 6.89.
    "loss": "mse",
    "aux_loss": "ranking",
    "rank_weight": 10.0,  # lambda, as published; 0, as in the shipped networks: 5.56 (n = 123)
    "pair_weight": 0.0,  # beta; the published 1: 5.53 (n = 123), a scanner never seen +0.5
    "pairs": "all",
    "sorter": "none",  # lambda 10 with pairwise sigmoids: 5.18; with the trained sorter: 5.67
    "tau": 2.0,  # years over which a comparison of `sorter` none is soft
}
# As the paper and the authors' scripts say.
PAPER = OURS | {
    "epochs": 150,
    "batch_size": 32,
    "optimizer": "adam",
    "lr": 1e-3,
    "weight_decay": 5e-4,
    "schedule": "plateau",
    "warmup_epochs": 0,
    "ema": 0.0,
    "stratify": False,
    "refresh_statistics": False,
    "early_stop": 20,
    "augment": "none",
    "pair_weight": 1.0,
    "pairs": "random",
    "sorter": "shipped",
}
FIRST_STAGE = {
    "ours": OURS
    | {
        "width": "compact",
        "resolution": 4,  # mm; 2 needs a GPU: 5.08, where three seeds at 4 mm have 5.14 to 5.67
        "crop": True,  # to the template's brain: 60 % of the voxels; not measured for itself
        "intensity": "tissue",
        "scaled_head": True,  # output weights times the SD of the ages; without: 5.24 (n = 123)
    },
    "paper": PAPER
    | {
        "width": "released",
        "resolution": 2,
        "crop": False,
        "scaled_head": False,
        "intensity": "brain",
    },
}
SECOND_STAGE = {
    "ours": OURS
    | {
        "width": None,  # that of the first stage
        "rough_share": 0.5,  # 0: the rounded age was repeated, residuals spread by 0.4 of 8.7 years
        "rough_age_noise": "auto",
        "age_step": 5.0,  # as published
    },
    "paper": PAPER
    | {
        "width": "released",
        "optimizer": "sgd",
        "lr": 1e-5,
        "rough_share": 0.0,
        "rough_age_noise": 0.0,
        "age_step": 5.0,
    },
}
# The quick start has so few scans that an average over 100 steps would hold the first weights.
FIRST_STAGE["quickstart"] = FIRST_STAGE["ours"] | {"epochs": 12, "ema": 0.9, "crop": False}
SECOND_STAGE["quickstart"] = SECOND_STAGE["ours"] | {"epochs": 6, "ema": 0.9}
# What `--any_grid` implies: volumes of any size, which no box or mask of the MNI152 grid fits.
ANY_GRID = {"resolution": 2, "crop": False, "intensity": "brain"}
