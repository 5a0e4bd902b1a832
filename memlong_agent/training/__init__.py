"""Training text for a model that must recall: invented facts, dialogues about them, real prose.

In comes a seeded `random.Random` or a seed; out come facts, dialogues and prose as plain strings.
This package's generators know no tokenizer, no tensor and no memory bank.
"""
