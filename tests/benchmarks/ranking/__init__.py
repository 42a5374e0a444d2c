"""The ranker judged on exposures: against baselines, without its features, as served."""
