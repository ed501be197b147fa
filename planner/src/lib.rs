//! Search over parallel configurations, capacity planning and explanation of psim.
