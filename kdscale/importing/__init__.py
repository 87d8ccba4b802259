"""Import of top-k sets that other tools captured: DistillKit, Megatron-LM, vLLM, axolotl, columns.

A reader of each layout (`distillkit`, `megatron`, `columns`) gives `Sequence`s; `checks` refuses
what is no distribution, `alignment` what belongs to other tokens; `rows` cuts and packs them into
rows; `write` commits these as a cache of codec `topk`, by the protocol of every other cache. Only
the CLI imports it.
"""
