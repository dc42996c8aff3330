# SPDX-License-Identifier: MIT
"""The parts of bench/compare and bench/compare-clusters; their heads say what they do.

    figures.py     medians, spread, targets as expressions over figures, formatted numbers  (pure)
    report.py      the Markdown table, the sections of docs/performance.md                   (pure)
    plots.py       bars and lines as SVG                                                     (pure)
    rows.py        the table: what each row asks and demands, by which stage it is measured
    stages.py      how each stage measures its rows
    servers.py     processes: started, pinned, ready, measured, ended by their ids
    clusters.py    clusters of DistKV's nodes and of etcd's members, and their clients
    machine.py     what the machine is, and what else runs on it
    hops.py        the client of the row with two shards: it knows on which shard a connection is
    probe.py       the bare DSYNC writes beside the mixed load; a program of its own
"""
