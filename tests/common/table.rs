//! A source of a custom format.
#![allow(dead_code, reason = "each test uses a part")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;
use tch_checkpoint::{Dtype, Location, Result, TensorSource, TensorSpec, VerifiedBy};

/// Tensors and values in memory.
#[derive(Debug, Default)]
pub struct Table {
    pub specs: BTreeMap<String, TensorSpec>,
    pub bytes: BTreeMap<String, Vec<u8>>,
    pub values: BTreeMap<String, Value>,
    pub unreadable: BTreeMap<String, String>,
}

impl Table {
    pub fn with(mut self, key: &str, dtype: Dtype, shape: &[u64], bytes: Vec<u8>) -> Table {
        let spec = TensorSpec::new(dtype, shape);
        assert_eq!(spec.bytes(), Some(bytes.len() as u64));
        self.specs.insert(key.to_string(), spec);
        self.bytes.insert(key.to_string(), bytes);
        self
    }

    /// Tensors of one number each.
    pub fn of(keys: &[&str]) -> Table {
        keys.iter().enumerate().fold(Table::default(), |table, (i, key)| {
            table.with(key, Dtype::I32, &[], (i as i32).to_le_bytes().to_vec())
        })
    }
}

impl TensorSource for Table {
    fn format(&self) -> &'static str {
        "table"
    }
    fn path(&self) -> &Location {
        static PATH: LazyLock<Location> = LazyLock::new(|| "table".into());
        &PATH
    }
    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }
    fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }
    fn unreadable(&self) -> &BTreeMap<String, String> {
        &self.unreadable
    }
    fn verified_by(&self, _: &str) -> VerifiedBy {
        VerifiedBy::Nothing
    }
    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        target.copy_from_slice(&self.bytes[key]);
        Ok(())
    }
    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        let size = self.specs[key].dtype.size();
        target.copy_from_slice(&self.bytes[key][range.start as usize * size..range.end as usize * size]);
        Ok(())
    }
    fn verify(&self) -> Result<()> {
        Ok(())
    }
}
