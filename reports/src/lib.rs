//! HTML reports, plots, traces and launch files of psim.
