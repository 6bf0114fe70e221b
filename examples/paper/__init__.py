"""The experiments of the SoftAdapt paper (Heydari, Thompson and Mehmood 2019), run again.

python -m examples.paper [--quick] [--only NAME ...] [--out paper_results]

One module for each experiment; `common` holds what they share. What came out is in RESULTS.md.
"""
