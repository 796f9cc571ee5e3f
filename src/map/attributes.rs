//! The attributes of a source under other names, or of several sources together.

use crate::error::Result;
use crate::format::{SAVED_MODEL_FILE, SAVED_MODEL_FILES, SavedModelInfo, check_saved_model_length};
use crate::name;
use crate::source::{SOURCES, SourceAttributes, TensorSource, of};
use serde_json::Value;

impl SourceAttributes {
    /// Leaves out the program of a saved model, with its description and its examples.
    pub(super) fn drop_saved_model(&mut self, reason: &str) {
        for name in SAVED_MODEL_FILES {
            if self.assets.remove(name).is_some() {
                self.left_out.insert(of("assets", name), reason.to_string());
            }
        }
    }

    /// Leaves out the program of a saved model unless `is_unchanged` holds for the key of every variable that it was
    /// exported with. `source` has the description; if it cannot be read, nothing is left out, and copying it reports
    /// the error.
    pub(super) fn fit_saved_model(&mut self, source: &dyn TensorSource, is_unchanged: impl Fn(&str) -> bool) {
        let Some(info) = self.saved_model(source) else { return };
        if let Some(variable) = info.variables.values().find(|variable| !is_unchanged(&variable.key)) {
            let key = name::shown(&variable.key);
            self.drop_saved_model(&format!(
                "the program has {key} as it was, under its name and with its type; export the saved model again"
            ));
        }
    }

    /// Returns the description of a saved model.
    fn saved_model(&self, source: &dyn TensorSource) -> Option<SavedModelInfo> {
        let entry = self.assets.get(SAVED_MODEL_FILE)?;
        check_saved_model_length(entry.bytes).ok()?;
        let mut bytes = Vec::new();
        let read = source.read_asset(SAVED_MODEL_FILE, &mut |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        });
        read.ok().and_then(|()| SavedModelInfo::from_bytes(&bytes).ok())
    }

    /// Returns the attributes on which all `sources` agree, with a record of the sources in the metadata. If they
    /// differ, the record has those of each source. `weights` are recorded as well, if given.
    pub(super) fn common(sources: &[&dyn TensorSource]) -> Result<SourceAttributes> {
        let all = sources.iter().map(|source| source.attributes()).collect::<Result<Vec<_>>>()?;
        let mut common = SourceAttributes::default();
        // A checkpoint of another tool has no attributes.
        let own: Vec<&SourceAttributes> = all.iter().filter(|attributes| attributes.id.is_some()).collect();
        let Some((first, others)) = own.split_first() else {
            common.record(sources, &[])?;
            return Ok(common);
        };
        let mut differing = |name: String| {
            let reason = format!("the sources have different ones; the metadata `{SOURCES}` has each");
            common.left_out.insert(name, reason);
        };
        common.step = first.step.filter(|_| others.iter().all(|other| other.step == first.step));
        if common.step.is_none() && own.iter().any(|attributes| attributes.step.is_some()) {
            differing("step".to_string());
        }
        let names = |all: &dyn Fn(&SourceAttributes) -> Vec<String>| {
            let mut names: Vec<String> = own.iter().flat_map(|attributes| all(attributes)).collect();
            names.sort();
            names.dedup();
            names
        };
        for name in names(&|attributes| attributes.metrics.keys().cloned().collect()) {
            let bits = |attributes: &SourceAttributes| attributes.metrics.get(&name).map(|value| value.to_bits());
            match first.metrics.get(&name).filter(|_| others.iter().all(|other| bits(other) == bits(first))) {
                Some(value) => drop(common.metrics.insert(name, *value)),
                None => differing(of("metrics", &name)),
            }
        }
        for name in names(&|attributes| attributes.metadata.keys().cloned().collect()) {
            let value = |attributes: &'_ SourceAttributes| attributes.metadata.get(&name).cloned();
            match value(first).filter(|_| others.iter().all(|other| value(other) == value(first))) {
                Some(value) => drop(common.metadata.insert(name, value)),
                None => differing(of("metadata", &name)),
            }
        }
        for name in names(&|attributes| attributes.assets.keys().cloned().collect()) {
            let mut entries = own.iter().filter_map(|attributes| attributes.assets.get(&name));
            let Some(entry) = entries.next() else { continue };
            match entries.all(|other| other == entry) {
                true => drop(common.assets.insert(name, entry.clone())),
                false => {
                    let reason = "the sources have different files of this name".to_string();
                    common.left_out.insert(of("assets", &name), reason);
                }
            }
        }
        if SAVED_MODEL_FILES.iter().any(|name| common.left_out.contains_key(&of("assets", name))) {
            common.drop_saved_model("the sources have different saved models");
        }
        common.id = first.id.clone();
        common.save_counter = own.iter().filter_map(|attributes| attributes.save_counter).max();
        common.unclean = own.iter().any(|attributes| attributes.unclean);
        common.without = names(&|attributes| attributes.without.clone());
        common.left_out.extend(own.iter().flat_map(|attributes| attributes.left_out.clone()));
        common.record(sources, &[])?;
        Ok(common)
    }

    /// Records the sources: the path and the format of each, and its attributes that are not recorded here unchanged.
    /// Metadata of the name under which the record is written are left out: those of a source that is an average or a
    /// merge itself are a record, which would grow with every one.
    pub(super) fn record(&mut self, sources: &[&dyn TensorSource], weights: &[f64]) -> Result<()> {
        let mut has_own = self.metadata.remove(SOURCES).is_some();
        let mut records = Vec::new();
        for (at, source) in sources.iter().enumerate() {
            let mut record = serde_json::Map::new();
            record.insert("path".to_string(), source.path().to_string().into());
            record.insert("format".to_string(), source.format().into());
            record.extend(weights.get(at).map(|weight| ("weight".to_string(), number(*weight))));
            let mut attributes = source.attributes()?;
            has_own |= attributes.metadata.remove(SOURCES).is_some();
            if let Some(id) = &attributes.id {
                record.insert("run".to_string(), id.run.clone().into());
                record.insert("sequence".to_string(), id.sequence.into());
            }
            record.extend(attributes.step.map(|step| ("step".to_string(), step.into())));
            let metrics = attributes.metrics.iter().map(|(name, value)| (name.clone(), number(*value)));
            let metrics: serde_json::Map<String, Value> = metrics.collect();
            if !metrics.is_empty() {
                record.insert("metrics".to_string(), metrics.into());
            }
            let others = attributes.metadata.into_iter().filter(|(name, value)| self.metadata.get(name) != Some(value));
            let others: serde_json::Map<String, Value> = others.collect();
            if !others.is_empty() {
                record.insert("metadata".to_string(), others.into());
            }
            if !attributes.sources.is_empty() {
                record.insert(SOURCES.to_string(), attributes.sources.into());
            }
            records.push(Value::Object(record));
        }
        self.sources = records;
        if has_own {
            let reason =
                "the record of the new checkpoint's sources has this name; the sources keep theirs".to_string();
            self.left_out.insert(of("metadata", SOURCES), reason);
        }
        Ok(())
    }
}

/// Returns a number as JSON, or as text if JSON cannot represent it.
fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or_else(|| Value::from(value.to_string()), Value::Number)
}
