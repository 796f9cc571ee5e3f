//! A save: assembled by the call, and run from the live tensors or from a capture.

use super::asset::{AssetStream, write_streams};
use super::clock::{SaveClock, SavedBytes};
use super::image::{Capture, Image};
use super::options::SaveOptions;
use super::plan::Plan;
use super::tracked::{Asset, Captured, SavedAsset};
use super::unchanged::{Memo, Unchanged};
use super::write;
use crate::error::{Error, Result};
use crate::figures::SaveFigures;
use crate::format::{Follows, Manifest, TensorRecord};
use crate::graph::{Moment, changed_meanwhile};
use crate::location::Location;
use crate::repository::{Directory, Transaction};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The identity of a checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    /// One more than the highest of the directory.
    pub sequence: u64,
    /// The run that writes.
    pub run: String,
    pub step: Option<u64>,
    pub save_counter: u64,
    pub metrics: BTreeMap<String, f64>,
    /// The checkpoint restored or saved before.
    pub follows: Option<Follows>,
    /// The checkpoints of earlier runs that this run came from, latest first.
    pub earlier: Vec<Follows>,
    /// For the policies of a manager that count intervals.
    pub counted_from: Option<DateTime<Utc>>,
    /// The metadata of the run and of this save.
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// Whether the state may be inconsistent.
    pub unclean: bool,
    /// The components that are tracked and left out, sorted.
    pub without: Vec<String>,
    /// Whether the manifest records the cost of the save.
    pub records_figures: bool,
}

/// A save. Everything except the tensors is as of the time of the request.
pub(crate) struct SaveRequest {
    plan: Arc<Plan>,
    stamp: Stamp,
    /// The moment whose state is saved.
    moment: Moment,
    values: BTreeMap<String, serde_json::Value>,
    assets: Vec<Captured>,
    /// The last checkpoint, whose files may be linked.
    unchanged: Unchanged,
    options: SaveOptions,
    refuse_unhealthy: bool,
    clock: SaveClock,
}

/// A checkpoint that was saved.
pub(crate) struct Committed {
    pub path: Location,
    pub manifest: Manifest,
    /// The marks that were written with it, by file.
    pub marks: Vec<(String, Vec<u8>)>,
    /// The state with which the next save is compared.
    pub memo: Memo,
    /// The cost of the save.
    pub figures: SaveFigures,
    /// The former and the new names of the checkpoints that it superseded.
    pub superseded: Vec<(String, String)>,
}

impl SaveRequest {
    /// Requests a save of `plan`, with the current values and files of the user. The save began when `clock` was
    /// started.
    pub(crate) fn new(
        plan: Arc<Plan>,
        unchanged: Unchanged,
        stamp: Stamp,
        assets: &[Asset],
        options: &SaveOptions,
        clock: SaveClock,
    ) -> Result<SaveRequest> {
        let moment = plan.moment()?;
        let values = plan.values()?;
        let assets = assets.iter().map(|asset| asset.capture(unchanged.earlier(asset.name())));
        let assets = assets.collect::<Result<_>>()?;
        let options = options.clone();
        Ok(SaveRequest { plan, stamp, moment, values, assets, unchanged, options, refuse_unhealthy: false, clock })
    }

    /// Sets whether non-finite values are an error.
    pub(crate) fn refuse_unhealthy(self, refuse_unhealthy: bool) -> SaveRequest {
        SaveRequest { refuse_unhealthy, ..self }
    }

    /// Requires that no writer on another thread has changed anything since `moment`, which is before the request.
    pub(crate) fn since(mut self, moment: Option<Moment>) -> SaveRequest {
        self.moment = moment.unwrap_or(self.moment);
        self
    }

    /// Replaces some of the values by those of the moment for which the tensors were captured.
    pub(crate) fn with_values(mut self, values: &BTreeMap<String, serde_json::Value>) -> SaveRequest {
        self.values.extend(values.clone());
        self
    }

    /// Prepares for a background save: checks now which files may be unchanged, and lets `capture` copy what must be
    /// copied during the call.
    pub(crate) fn capture_now(&mut self, capture: &Capture, directory: &Directory) -> Result<()> {
        // The training needs the processors more.
        self.options.threads = self.options.threads.div_ceil(2);
        self.unchanged.prove(&self.plan, directory, |file| capture.is_behind(file), self.options.threads);
        capture.copy_now(|file| self.unchanged.is_proved(file))
    }

    /// Writes the checkpoint `name` of `directory` from `image`, or from the live tensors if there is none, with the
    /// assets `streams`, in place of those that it `supersedes`. It is durable when this returns; after an error the
    /// directory is unchanged. `ready` is called when everything else is written, and returns the marks to write with
    /// it, by file; an error of it aborts the save.
    pub(crate) fn run(
        mut self,
        image: Option<&Image>,
        directory: &Directory,
        name: &str,
        streams: Vec<AssetStream<'_>>,
        supersedes: &[String],
        ready: impl FnOnce(&Follows) -> Result<Vec<(String, Vec<u8>)>>,
    ) -> Result<Committed> {
        let assets = self.assets.iter().map(|asset| asset.entry.bytes);
        let bytes = assets.chain(streams.iter().map(|stream| stream.bytes));
        let bytes = bytes.fold(self.plan.bytes(), u64::saturating_add);
        let staging = directory.begin(name, bytes)?;
        let linked = self.link_assets(&*staging);
        let assets = self.assets.iter().zip(&linked).filter(|(_, is_linked)| !**is_linked);
        let beside = assets.map(|(asset, _)| asset.entry.bytes).chain(streams.iter().map(|stream| stream.bytes));
        let beside: Vec<u64> = beside.collect();
        let written = write::write(&self.plan, image, &self.unchanged, &beside, directory, &*staging, &self.options)?;
        // These may read live tensors, too, as that of a saved model's program does.
        let streamed = write_streams(streams, &*staging)?;
        if image.is_none()
            && let Some(key) = self.plan.changed_since(&self.moment)?
        {
            return Err(changed_meanwhile(&key));
        }
        if written.cannot_link {
            self.unchanged.cannot_link();
        }
        let mut manifest = self.manifest(written.tensors, directory.now());
        manifest.files = written.files;
        if self.refuse_unhealthy {
            let tensors: Vec<String> = manifest.non_finite().map(str::to_string).collect();
            if !tensors.is_empty() {
                return Err(Error::Unhealthy { path: directory.path(name), tensors });
            }
        }
        manifest.assets = streamed;
        let mut bytes = SavedBytes::default();
        self.plan.files.iter().zip(&written.linked).for_each(|(file, is_linked)| bytes.add(file.bytes, *is_linked));
        manifest.assets.values().for_each(|entry| bytes.add(entry.bytes, false));
        let assets = self.write_assets(&linked, directory, &*staging)?;
        assets.iter().for_each(|asset| bytes.add(asset.captured.entry.bytes, asset.finished.is_none()));
        let entries = assets.iter().map(|asset| (asset.captured.name.clone(), asset.captured.entry.clone()));
        manifest.assets.extend(entries);
        manifest.figures = self.stamp.records_figures.then(|| self.clock.figures(bytes));
        let marks = ready(&manifest.id())?;
        for (file, bytes) in &marks {
            let staged = staging.create(file, bytes.len() as u64)?;
            staged.write_all_at(0, bytes)?;
            staged.finish(bytes.len() as u64)?;
        }
        let superseded = staging.commit(&manifest.to_bytes()?, self.options.threads, supersedes)?;
        let path = directory.path(name);
        let SaveRequest { plan, unchanged, clock, .. } = self;
        let figures = clock.figures(bytes);
        let memo = unchanged.into_memo(&plan, name, &manifest, &written.linked, &written.finished, assets);
        Ok(Committed { path, manifest, marks, memo, figures, superseded })
    }

    /// Hard-links the assets that have not changed. Returns which were linked.
    fn link_assets(&self, staging: &dyn Transaction) -> Vec<bool> {
        let (last, earlier) = (self.unchanged.from(), |asset: &Captured| self.unchanged.earlier(&asset.name));
        self.assets.iter().map(|asset| asset.link(last, earlier(asset), staging)).collect()
    }

    /// Writes the assets that are not `linked`.
    fn write_assets(
        &mut self,
        linked: &[bool],
        directory: &Directory,
        staging: &dyn Transaction,
    ) -> Result<Vec<SavedAsset>> {
        let assets = std::mem::take(&mut self.assets).into_iter().zip(linked);
        let saved = assets.map(|(asset, is_linked)| match is_linked {
            true => Ok(SavedAsset { captured: asset, finished: None }),
            false => asset.write(self.unchanged.from(), directory, staging),
        });
        saved.collect()
    }

    fn manifest(&mut self, mut tensors: BTreeMap<String, TensorRecord>, saved_at: DateTime<Utc>) -> Manifest {
        let stamp = self.stamp.clone();
        self.plan.note_trainable(self.unchanged.seen(), &mut tensors);
        let mut manifest = Manifest::new(stamp.sequence, stamp.run, saved_at);
        manifest.step = stamp.step;
        manifest.save_counter = Some(stamp.save_counter);
        manifest.tensors = tensors;
        manifest.values = std::mem::take(&mut self.values);
        manifest.metrics = stamp.metrics;
        manifest.earlier = stamp.earlier;
        manifest.earlier.retain(|earlier| stamp.follows.as_ref().is_some_and(|follows| follows != earlier));
        manifest.follows = stamp.follows;
        manifest.counted_from = stamp.counted_from;
        manifest.metadata = stamp.metadata;
        manifest.unclean = stamp.unclean;
        manifest.without = stamp.without;
        manifest
    }
}
