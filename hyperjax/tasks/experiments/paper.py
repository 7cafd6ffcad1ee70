"""Figures of the paper that stand beside ours: "mean ± std" of test accuracy in %."""

# Epoch -> population -> data set, of Table 1. Its KDE30 is what is called kde_anchor30 here.
TAB1 = {
    0: {
        "B_kde30": {"mnist": "63.2 ± 7.2", "svhn": "10.1 ± 3.2", "cifar10": "15.5 ± 3.4",
                    "stl10": "12.7 ± 3.4"},
        "S_kde30": {"mnist": "68.6 ± 6.7", "svhn": "51.5 ± 5.9", "cifar10": "26.9 ± 4.9",
                    "stl10": "19.7 ± 2.1"},
    },
    1: {
        "B_T": {"mnist": "20.6 ± 1.6", "svhn": "19.4 ± 0.6", "cifar10": "27.5 ± 2.1",
                "stl10": "15.4 ± 1.8"},
        "B_kde30": {"mnist": "83.2 ± 1.2", "svhn": "67.4 ± 2.0", "cifar10": "39.7 ± 0.6",
                    "stl10": "26.4 ± 1.6"},
        "S_kde30": {"mnist": "83.7 ± 1.3", "svhn": "69.9 ± 1.6", "cifar10": "44.0 ± 0.5",
                    "stl10": "25.9 ± 1.6"},
    },
    25: {
        "B_T": {"mnist": "83.3 ± 2.6", "svhn": "66.7 ± 8.5", "cifar10": "46.1 ± 1.3",
                "stl10": "35.0 ± 1.3"},
        "B_kde30": {"mnist": "93.2 ± 0.6", "svhn": "75.4 ± 0.9", "cifar10": "48.1 ± 0.6",
                    "stl10": "38.4 ± 0.9"},
        "S_kde30": {"mnist": "93.0 ± 0.7", "svhn": "74.2 ± 1.4", "cifar10": "48.6 ± 0.5",
                    "stl10": "38.1 ± 1.1"},
    },
    50: {
        "B_T": {"mnist": "91.1 ± 2.6", "svhn": "70.7 ± 8.8", "cifar10": "48.7 ± 1.4",
                "stl10": "39.0 ± 1.0"},
    },
}  # fmt: skip
