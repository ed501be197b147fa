//! Runs a psim plan for real and compares it with the prediction.
