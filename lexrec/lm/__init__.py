"""Pretrained causal language models: found, loaded, and given a second vocabulary of items.

settings    which language model, how it is held in memory
sources     from a name to a folder of safetensors, and the hash of its weights
loading     from that folder to a `LanguageModel`
stream      histories as one stream of tokens, and attention that keeps them apart
routing     which tokens a feed-forward expert gets
experts     a feed-forward layer's second expert, of the same form
adapters/   what is changed in the language model, one file each
prompt      what is known of items, as tokens
saved       a state dict holds what was trained, and nothing else
"""
