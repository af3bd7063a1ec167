"""Makes stats.json: what scipy, statsmodels and numpy say, for the tests of `stats.rs`."""

import json
import pathlib

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

out = {"wilson": [], "mcnemar": [], "quantiles": []}
for k, n in [(0, 10), (10, 10), (1, 3), (43, 1000), (999, 1000), (250000, 1000000)]:
    ci = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    out["wilson"].append({"k": k, "n": n, "low": ci.low, "high": ci.high})
for wins, losses in [(0, 1), (0, 6), (3, 9), (12, 12), (40, 75), (480, 520), (900, 1100)]:
    p = stats.binomtest(wins, wins + losses, 0.5).pvalue
    out["mcnemar"].append({"wins": wins, "losses": losses, "p": p})
values = np.sort(np.random.default_rng(1).gamma(2.0, 1.5, size=60))
out["sorted"] = values.tolist()
for q in [0.0, 0.025, 0.5, 0.7, 0.975, 1.0]:
    out["quantiles"].append({"q": q, "value": float(np.quantile(values, q))})
ci = stats.bootstrap(
    (values,), np.mean, n_resamples=50000, method="percentile", rng=np.random.default_rng(2)
).confidence_interval
out["bootstrap_mean"] = {"low": ci.low, "high": ci.high}
out["corrections"] = []
for p in [[0.01], [0.04, 0.01, 0.03, 0.5, 0.011, 0.2], [0.02, 0.02, 0.9, 1.0, 0.001], [0.6, 0.7]]:
    holm, fdr = (multipletests(p, method=method)[1].tolist() for method in ["holm", "fdr_bh"])
    out["corrections"].append({"p": p, "holm": holm, "fdr": fdr})
out["t"] = []
for n in [2, 3, 5, 12, 40]:
    sample = np.random.default_rng(n).normal(2.0, 1.0, size=n)
    low, high = stats.t.interval(0.95, n - 1, loc=sample.mean(), scale=stats.sem(sample))
    out["t"].append({"values": sample.tolist(), "low": low, "high": high})
path = pathlib.Path(__file__).parent / "stats.json"
path.write_text(json.dumps(out, indent=1) + "\n")
