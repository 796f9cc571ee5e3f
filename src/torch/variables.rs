//! The variables of a `VarStore`, all or those under a prefix.

use super::shim::{self, object};
use crate::error::BoxError;
use crate::graph::{Child, Collection, Created, Node, SavedTree, Trackable};
use crate::name;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tch::Tensor;
use tch::nn::VarStore;

/// The separator of the components of a variable's name in tch.
const SEPARATOR: char = '.';

/// A `VarStore`'s table of variables, which it shares with its users.
pub(super) type Table = Arc<Mutex<tch::nn::Variables>>;

/// Locks the table.
pub(super) fn lock(table: &Table) -> MutexGuard<'_, tch::nn::Variables> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The variables of a `VarStore`, or those under a prefix, for tracking.
///
/// This is a live handle: it includes variables that are added to the store later. In the graph a variable has its name
/// in the store, without the prefix; in the safetensors file it has the store's own full name, so that `VarStore::load`
/// can read the file.
///
/// A variable that tch may have renamed (`weight__7`) because another one had its name is an error: the number depends
/// on the order in which the model was built. Give the second one another name. If you chose the name yourself, allow
/// it with [`allow_numbered_names`](Variables::allow_numbered_names).
///
/// ```no_run
/// use tch::{Device, nn};
/// use tch_checkpoint::{Trackable, Variables};
///
/// let vs = nn::VarStore::new(Device::Cpu);
/// let encoder = nn::linear(vs.root() / "encoder", 256, 64, Default::default());
/// let everything = Variables::of(&vs);
/// let only_the_encoder = Variables::of(&vs).under("encoder"); // `weight` and `bias`
/// # let _ = (encoder, everything.node(), only_the_encoder.node());
/// ```
#[derive(Clone)]
pub struct Variables {
    table: Table,
    prefix: Option<String>,
    select: Arc<Selection>,
}

/// Which of the variables below the prefix are selected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Selection {
    trainable: bool,
    /// Patterns for names; empty for all.
    included: Vec<String>,
    excluded: Vec<String>,
}

impl Selection {
    fn has(&self, name: &str) -> bool {
        let matches = |patterns: &[String]| patterns.iter().any(|pattern| name::matches(pattern, name));
        (self.included.is_empty() || matches(&self.included)) && !matches(&self.excluded)
    }
}

impl Variables {
    /// Returns all variables of `vs`.
    #[must_use]
    pub fn of(vs: &VarStore) -> Variables {
        Variables { table: vs.variables_.clone(), prefix: None, select: Arc::default() }
    }

    /// Selects the variables below `prefix`, which is one or several complete components of their names, such as
    /// `encoder` or `model.encoder`; `encoder` does not include `encoder2`. If there are none, saving and restoring
    /// fail with an error that lists the existing prefixes.
    #[must_use]
    pub fn under(self, prefix: impl Into<String>) -> Variables {
        let below = prefix.into();
        let below = below.trim_end_matches(SEPARATOR);
        let prefix = match self.prefix {
            Some(above) => format!("{above}{SEPARATOR}{below}"),
            None => below.to_string(),
        };
        Variables { prefix: Some(prefix).filter(|prefix| !prefix.is_empty()), ..self }
    }

    /// Selects the variables that are trained at present: parameters that require a gradient. Frozen parameters and
    /// buffers, such as the running statistics of a batch norm, are left out of checkpoints, and a restore leaves them
    /// unchanged. This is for adapters on a model from another source that is loaded before each restore.
    ///
    /// A variable that was trained when the checkpoint was saved, and is frozen now, is restored. As for all variables,
    /// [`RestoreOptions::trainable`](crate::RestoreOptions::trainable) decides what becomes of the difference.
    ///
    /// Freezing or unfreezing a variable changes what the next save contains: nothing, if all are frozen. Do not use
    /// this if checkpoints should be complete: the frozen parameters of a component have their own file, which a manager
    /// hard-links instead of writing it again.
    ///
    /// ```no_run
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
    /// use tch_checkpoint::{Checkpoint, Variables};
    /// let checkpoint = Checkpoint::new().track("adapters", Variables::of(&vs).trainable())?;
    /// # let _ = checkpoint;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn trainable(mut self) -> Variables {
        Arc::make_mut(&mut self.select).trainable = true;
        self
    }

    /// Selects the variables whose name below the prefix matches `pattern`, in which `*` matches any text. Of several
    /// patterns, one must match.
    ///
    /// ```no_run
    /// # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
    /// use tch_checkpoint::Variables;
    /// let adapters = Variables::of(&vs).include("*.lora_a").include("*.lora_b");
    /// let body = Variables::of(&vs).under("model").exclude("head.*");
    /// # let _ = (adapters, body);
    /// ```
    #[must_use]
    pub fn include(mut self, pattern: impl Into<String>) -> Variables {
        Arc::make_mut(&mut self.select).included.push(pattern.into());
        self
    }

    /// Leaves out the variables whose name below the prefix matches `pattern`, in which `*` matches any text, whatever
    /// else selects them.
    #[must_use]
    pub fn exclude(mut self, pattern: impl Into<String>) -> Variables {
        Arc::make_mut(&mut self.select).excluded.push(pattern.into());
        self
    }

    /// Declares that names such as `stage__1` in addition to `stage` were chosen by the program, not generated by tch
    /// for a duplicate name. This applies to the `VarStore`, with all its `Variables` and optimizers. By default, such
    /// names are errors.
    ///
    /// ```no_run
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
    /// use tch_checkpoint::{Checkpoint, Variables};
    /// let checkpoint = Checkpoint::new().track("model", Variables::of(&vs).allow_numbered_names())?;
    /// # let _ = checkpoint;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn allow_numbered_names(self) -> Variables {
        let mut numbered = numbered();
        numbered.retain(|table| table.strong_count() > 0);
        if !numbered.iter().any(|table| std::ptr::eq(table.as_ptr(), Arc::as_ptr(&self.table))) {
            numbered.push(Arc::downgrade(&self.table));
        }
        drop(numbered);
        self
    }
}

/// The stores whose numbered names were chosen by the program.
static NUMBERED: Mutex<Vec<Weak<Mutex<tch::nn::Variables>>>> = Mutex::new(Vec::new());

fn numbered() -> MutexGuard<'static, Vec<Weak<Mutex<tch::nn::Variables>>>> {
    NUMBERED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns `true` if the numbered names of a store were chosen by the program.
pub(super) fn are_numbered_names_allowed(table: &Table) -> bool {
    numbered().iter().any(|numbered| std::ptr::eq(numbered.as_ptr(), Arc::as_ptr(table)))
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Variables").field("prefix", &self.prefix).field("select", &self.select).finish_non_exhaustive()
    }
}

impl Trackable for Variables {
    fn node(&self) -> Node {
        Node::collection(self.clone())
    }
}

/// Like [`Variables::of`]: all variables of the store, including those of layers that are added later.
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
/// let checkpoint = tch_checkpoint::Checkpoint::new().track("model", &vs)?;
/// # let _ = checkpoint;
/// # Ok(())
/// # }
/// ```
impl Trackable for VarStore {
    fn node(&self) -> Node {
        Variables::of(self).node()
    }
}

impl Collection for Variables {
    fn children(&self) -> Result<Vec<Child>, BoxError> {
        let table = lock(&self.table);
        let below = self.below(&table)?;
        let mut children = Vec::with_capacity(below.len());
        let parameters = parameters(&table);
        let renamed = Renamed::of(&self.table, &table.named_variables);
        for (name, (full, tensor)) in below {
            if let Some(reason) = renamed.why(full) {
                return Err(reason.into());
            }
            children.push(Child {
                name: name.to_string(),
                node: tensor.node(),
                name_in_file: Some(full.to_string()),
                // Buffers require no gradient either, and change.
                frozen: parameters.contains(&object(tensor)) && !tensor.requires_grad(),
            });
        }
        Ok(children)
    }

    fn create(&self, name: &str, saved: &SavedTree) -> Result<Option<Created>, BoxError> {
        // A variable that was selected when the checkpoint was saved and is frozen now.
        if !self.select.trainable || !saved.was_trained || !self.select.has(name) {
            return Ok(None);
        }
        let table = lock(&self.table);
        let full = self.full_name(name);
        let Some(tensor) = table.named_variables.get(&full) else { return Ok(None) };
        if let Some(reason) = Renamed::of(&self.table, &table.named_variables).why(&full) {
            return Err(reason.into());
        }
        Ok(Some(Created { name_in_file: Some(full), ..Created::new(tensor.node(), || ()) }))
    }

    fn generation(&self) -> Option<u64> {
        // The order of an unchanged table stays the same.
        let table = lock(&self.table);
        match self.select.trainable {
            false => Some(shim::objects(table.named_variables.values())),
            true => Some(shim::objects(table.named_variables.values().filter(|tensor| tensor.requires_grad()))),
        }
    }
}

impl From<&VarStore> for Variables {
    fn from(vs: &VarStore) -> Variables {
        Variables::of(vs)
    }
}

impl From<&Variables> for Variables {
    fn from(variables: &Variables) -> Variables {
        variables.clone()
    }
}

/// A variable, as [`Variables::list`] returns it.
pub(super) struct Listed {
    /// Its name below the prefix.
    pub name: String,
    /// Its name in the store.
    pub full_name: String,
    pub tensor: Tensor,
    /// Whether the store lists it as trainable; otherwise it is a buffer.
    pub is_trainable: bool,
}

impl Variables {
    /// Returns the current variables, sorted by name.
    pub(super) fn list(&self) -> Result<Vec<Listed>, String> {
        let table = lock(&self.table);
        let trainable = parameters(&table);
        let renamed = Renamed::of(&self.table, &table.named_variables);
        let listed = self.below(&table)?.into_iter().map(|(name, (full, tensor))| {
            if let Some(reason) = renamed.why(full) {
                return Err(reason);
            }
            Ok(Listed {
                name: name.to_string(),
                full_name: full.to_string(),
                tensor: tensor.shallow_clone(),
                is_trainable: trainable.contains(&object(tensor)),
            })
        });
        listed.collect()
    }

    /// Returns `true` if only variables that are trained at present are selected.
    pub(super) fn are_trainable(&self) -> bool {
        self.select.trainable
    }

    /// Returns the parameters of the store, as [`object`]s.
    pub(super) fn parameters(&self) -> HashSet<usize> {
        parameters(&lock(&self.table))
    }

    /// Returns a variable of this name that would be selected if it were not frozen. `parameters` are those of the
    /// store.
    pub(super) fn frozen(&self, name: &str, parameters: &HashSet<usize>) -> Result<Option<Listed>, String> {
        let full = self.full_name(name);
        let table = lock(&self.table);
        let Some(tensor) = table.named_variables.get(&full) else { return Ok(None) };
        if !self.select.has(name) || !parameters.contains(&object(tensor)) {
            return Ok(None);
        }
        if let Some(reason) = Renamed::of(&self.table, &table.named_variables).why(&full) {
            return Err(reason);
        }
        let tensor = tensor.shallow_clone();
        Ok(Some(Listed { name: name.to_string(), full_name: full, tensor, is_trainable: true }))
    }

    /// Returns the variable of this name below the prefix, selected or not.
    pub(super) fn named(&self, name: &str) -> Option<Tensor> {
        lock(&self.table).named_variables.get(&self.full_name(name)).map(Tensor::shallow_clone)
    }

    /// Returns the names below the prefix, with full names and tensors. It is an error if no variable is selected, unless
    /// only because all of them are frozen at present.
    fn below<'a>(&self, table: &'a tch::nn::Variables) -> Result<BTreeMap<&'a str, (&'a str, &'a Tensor)>, String> {
        let named = table.named_variables.iter();
        let mut below: BTreeMap<_, _> =
            named.filter_map(|(full, tensor)| Some((self.name_below(full)?, (full.as_str(), tensor)))).collect();
        if let (Some(prefix), true) = (&self.prefix, below.is_empty()) {
            return Err(no_variables(prefix, &table.named_variables));
        }
        if *self.select == Selection::default() {
            return Ok(below);
        }
        let parameters = if self.select.trainable { parameters(table) } else { HashSet::new() };
        let can_be_trained = |tensor: &Tensor| !self.select.trainable || parameters.contains(&object(tensor));
        below.retain(|name, (_, tensor)| self.select.has(name) && can_be_trained(tensor));
        if below.is_empty() {
            return Err(format!("none of the variables is selected by {:?}", self.select));
        }
        below.retain(|_, (_, tensor)| !self.select.trainable || tensor.requires_grad());
        Ok(below)
    }

    fn full_name(&self, name: &str) -> String {
        match &self.prefix {
            Some(prefix) => format!("{prefix}{SEPARATOR}{name}"),
            None => name.to_string(),
        }
    }

    /// Returns a variable's name without the prefix, or `None` if it is not below the prefix.
    fn name_below<'a>(&self, full: &'a str) -> Option<&'a str> {
        let Some(prefix) = &self.prefix else { return Some(full) };
        full.strip_prefix(prefix.as_str())?.strip_prefix(SEPARATOR)
    }
}

/// Returns the parameters of a store, as [`object`]s; all its other variables are buffers.
fn parameters(table: &tch::nn::Variables) -> HashSet<usize> {
    table.trainable_variables.iter().map(|one| object(&one.tensor)).collect()
}

fn no_variables(prefix: &str, named: &HashMap<String, Tensor>) -> String {
    if named.is_empty() {
        return format!("the VarStore has no variables yet, so none under {prefix:?}; build the model first");
    }
    if named.contains_key(prefix) {
        return format!("{prefix:?} is a variable, not a prefix of variables; track the tensor itself");
    }
    let mut prefixes = BTreeSet::new();
    for name in named.keys() {
        prefixes.extend(name.match_indices(SEPARATOR).map(|(end, _)| &name[..end]));
    }
    if prefixes.is_empty() {
        return format!("the VarStore has no variables under {prefix:?}, nor under any prefix");
    }
    const SHOWN: usize = 20;
    let more = prefixes.len().saturating_sub(SHOWN);
    let shown: Vec<&str> = prefixes.into_iter().take(SHOWN).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("the VarStore has no variables under {prefix:?}; there are {}{more}", shown.join(", "))
}

/// The names of a store that look as if `VarStore` had generated them for a duplicate name: `{name}__{count}`.
pub(super) struct Renamed<'a> {
    named: &'a HashMap<String, Tensor>,
    allowed: bool,
}

impl<'a> Renamed<'a> {
    pub(super) fn of(table: &Table, named: &'a HashMap<String, Tensor>) -> Renamed<'a> {
        Renamed { named, allowed: are_numbered_names_allowed(table) }
    }

    /// Returns the reason to refuse `name`, if there is one.
    pub(super) fn why(&self, name: &str) -> Option<String> {
        let (original, number) = name.rsplit_once("__")?;
        let count: usize = number.parse().ok()?;
        let looks_so = number == count.to_string() && count > 0 && count < self.named.len();
        if self.allowed || !looks_so || !self.named.contains_key(original) {
            return None;
        }
        Some(format!(
            "the variable {name:?} may have been created as {original:?}, a name that was taken: tch then appends the \
             number of variables at that moment, so that it would have another name in a model that is built in another \
             order. Give the two different names or paths; to use one variable in two places, create it once and share \
             the tensor. If the name is your own, say so with `Variables::of(&vs).allow_numbered_names()`"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Leaf, LeafObject, walk};
    use tch::{Device, nn};

    fn store(names: &[&str]) -> VarStore {
        let vs = VarStore::new(Device::Cpu);
        for name in names {
            let _ = add(&vs, name);
        }
        vs
    }

    fn add(vs: &VarStore, name: &str) -> Tensor {
        let mut path = vs.root();
        let mut parts = name.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return path.zeros(part, &[2]);
            }
            path = path.sub(part);
        }
        unreachable!()
    }

    fn names(variables: &Variables) -> Vec<String> {
        variables.children().unwrap().into_iter().map(|child| child.name).collect()
    }

    #[test]
    fn a_prefix_is_whole_components() {
        let vs = store(&["encoder.w", "encoder2.w", "encoder.gru.w", "model.encoder.w", "bias"]);
        assert_eq!(names(&Variables::of(&vs).under("encoder")), ["gru.w", "w"]);
        assert_eq!(names(&Variables::of(&vs).under("encoder.")), ["gru.w", "w"]);
        assert_eq!(names(&Variables::of(&vs).under("model.encoder")), ["w"]);
        assert_eq!(names(&Variables::of(&vs).under("model").under("encoder")), ["w"]);
        assert_eq!(names(&Variables::of(&vs)), ["bias", "encoder.gru.w", "encoder.w", "encoder2.w", "model.encoder.w"]);
    }

    #[test]
    fn files_have_the_full_names() {
        let vs = store(&["encoder.w"]);
        let leaves = walk(&[("enc".to_string(), Variables::of(&vs).under("encoder").node())]).unwrap().leaves;
        assert_eq!((leaves[0].key.as_str(), leaves[0].name_in_file.as_str()), ("enc/w", "encoder.w"));
        let leaves = walk(&[("model".to_string(), Variables::of(&vs).node())]).unwrap().leaves;
        assert_eq!((leaves[0].key.as_str(), leaves[0].name_in_file.as_str()), ("model/encoder.w", "encoder.w"));
        assert!(matches!(leaves[0].object, LeafObject::Tensor(_)));
        // A name is one component of the key, but is not escaped in the file.
        let vs = store(&["encoder.a/b%"]);
        for variables in [Variables::of(&vs), Variables::of(&vs).under("encoder")] {
            let leaves = walk(&[("model".to_string(), variables.node())]).unwrap().leaves;
            assert_eq!(leaves[0].name_in_file.as_str(), "encoder.a/b%");
            assert!(leaves[0].key.ends_with("a%2Fb%25"), "{}", leaves[0].key);
        }
    }

    #[test]
    fn it_is_live() {
        let vs = store(&["encoder.w"]);
        let variables = Variables::of(&vs).under("encoder");
        let node = variables.node();
        let later = add(&vs, "encoder.b");
        assert_eq!(names(&variables), ["b", "w"]);
        let _ = tch::no_grad(|| later.shallow_clone().fill_(3.0));
        let leaves = walk(&[("e".to_string(), node)]).unwrap().leaves;
        let LeafObject::Tensor(leaf) = &leaves[0].object else { panic!("a tensor") };
        assert_eq!(leaf.bytes().unwrap().as_slice(), [3f32.to_le_bytes(), 3f32.to_le_bytes()].concat());
    }

    #[test]
    fn its_generation_moves_with_what_is_saved() {
        let mut vs = store(&["w", "b"]);
        // That of the variables, and those of the tensors.
        let generations = |vs: &VarStore| {
            let variables = Variables::of(vs);
            let leaves = walk(&[("m".to_string(), variables.node())]).unwrap().leaves.into_iter();
            let of_leaf = |leaf: Leaf| match leaf.object {
                LeafObject::Tensor(leaf) => leaf.generation(),
                LeafObject::Value(_) => panic!("a tensor"),
            };
            (variables.generation(), leaves.map(of_leaf).collect::<Vec<_>>())
        };
        let mut seen = vec![generations(&vs)];
        let mut is_new = |vs: &VarStore| {
            let generation = generations(vs);
            let new = !seen.contains(&generation);
            seen.push(generation);
            new
        };
        let w = vs.variables()["w"].shallow_clone();
        let _ = tch::no_grad(|| w.shallow_clone().fill_(1.0));
        assert!(!is_new(&vs));
        let _ = add(&vs, "c");
        assert!(is_new(&vs));
        vs.double();
        assert!(is_new(&vs));
        w.shallow_clone().set_data(&Tensor::zeros([3], (tch::Kind::Double, Device::Cpu)));
        assert!(is_new(&vs));
    }

    #[test]
    fn an_unknown_prefix_lists_those_there_are() {
        let refusal =
            |vs: &VarStore, prefix: &str| Variables::of(vs).under(prefix).children().err().unwrap().to_string();
        let vs = store(&["model.encoder.w", "decoder.w", "bias"]);
        assert!(refusal(&vs, "encoder").ends_with("there are decoder, model, model.encoder"));
        assert!(refusal(&vs, "bias").contains("track the tensor itself"));
        assert!(refusal(&store(&[]), "encoder").contains("build the model first"));
        assert!(refusal(&store(&["w"]), "encoder").contains("nor under any prefix"));
        assert_eq!(names(&Variables::of(&store(&[]))), [] as [&str; 0]);
    }

    #[test]
    fn a_second_variable_of_the_same_name_is_refused() {
        let vs = store(&["other.w", "encoder.w", "encoder.w"]);
        assert!(vs.variables().contains_key("encoder.w__2"));
        let refusal = Variables::of(&vs).children().err().unwrap().to_string();
        assert!(
            refusal.contains("may have been created as \"encoder.w\"") && refusal.contains("\"encoder.w__2\""),
            "{refusal}"
        );
        assert!(Variables::of(&vs).under("encoder").children().is_err());
        assert_eq!(names(&Variables::of(&vs).under("other")), ["w"]);
        // Unless the user has allowed such names, which applies to the whole store.
        let vs = store(&["other", "stage", "stage__1", "stage__2"]);
        assert!(Variables::of(&vs).children().err().unwrap().to_string().contains("allow_numbered_names"));
        assert_eq!(names(&Variables::of(&vs).allow_numbered_names()).len(), 4);
        assert_eq!(names(&Variables::of(&vs)).len(), 4);
        // Names that only look a little like it.
        assert_eq!(names(&Variables::of(&store(&["w", "w__x", "w__01", "w__9", "v__1"]))).len(), 5);
    }

    #[test]
    fn tied_variables_have_one_identity() {
        let vs = store(&["embedding"]);
        let tied = vs.root().get("embedding").unwrap();
        let tied = (vs.root() / "decoder").add("embedding", tied, true);
        let identities: Vec<_> = walk(&[("m".to_string(), Variables::of(&vs).node())])
            .unwrap()
            .leaves
            .into_iter()
            .map(|leaf| match leaf.object {
                LeafObject::Tensor(leaf) => leaf.identity().unwrap(),
                LeafObject::Value(_) => panic!("a tensor"),
            })
            .collect();
        assert_eq!(identities[0], identities[1]);
        assert_eq!(identities[0].address, tied.data_ptr() as usize);
        let _ = nn::Path::get(&vs.root(), "embedding");
    }
}
