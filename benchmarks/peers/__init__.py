"""Other libraries beside lexrec: the same data, model size, loss and machine, in turns.

    python -m benchmarks.peers setup --home ~/peers
    python -m benchmarks.peers run --home ~/peers --data data/beauty --out peers.jsonl

Each library has an environment of its own (PEER.txt) and an adapter (adapters/PEER.py) that drives it as
its documentation says. Each measurement is a process of its own (worker.py), so that its peak memory is its
own too; it reads nothing of lexrec but the arrays of a prepared data set.
"""
