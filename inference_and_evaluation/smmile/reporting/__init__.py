"""Reports: statistics, comparisons, strata, tables and figures."""
