//! Configuration files of training frameworks.
