//! tch-checkpoint
