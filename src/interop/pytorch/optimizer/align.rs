//! Assigns names to numbers, in order, by shape.

/// The maximum of parameters times variables: two tables have that many bits.
const MAX_CELLS: usize = 100_000_000;

/// The number of candidates that a message names.
const SHOWN: usize = 5;

/// Gives each of `shapes` (unknown where a parameter has no state) one of `variables`, in order. Only parameters with a
/// known shape need exactly one; the others get an empty name where there are several.
pub(super) fn align(shapes: &[Option<&[u64]>], variables: &[(String, Vec<u64>)]) -> Result<Vec<String>, String> {
    let (n, m) = (shapes.len(), variables.len());
    if n > m {
        return Err(format!("its state numbers {n} parameters, there are only {m} variables to choose from"));
    }
    // Parameter i can only be among the variables i to i + free.
    let free = m - n;
    if (n + 1).checked_mul(free + 1).is_none_or(|cells| cells > MAX_CELLS) {
        return Err(format!("{n} parameters among {m} variables are too many to try; give their names in order"));
    }
    let fits = |i: usize, skipped: usize| shapes[i].is_none_or(|shape| variables[i + skipped].1 == shape);
    let width = free + 1;
    // `first[i][s]`: whether the first i parameters can be given to the first i + s variables; `last`, the others to
    // the others.
    let mut first = vec![false; (n + 1) * width];
    first[..width].fill(true);
    for i in 0..n {
        for s in 0..width {
            let is_here = first[i * width + s] && fits(i, s);
            first[(i + 1) * width + s] = is_here || (s > 0 && first[(i + 1) * width + s - 1]);
        }
    }
    let mut last = vec![false; (n + 1) * width];
    last[n * width..].fill(true);
    for i in (0..n).rev() {
        for s in (0..width).rev() {
            let is_here = last[(i + 1) * width + s] && fits(i, s);
            last[i * width + s] = is_here || (s + 1 < width && last[i * width + s + 1]);
        }
    }
    let candidates = |i: usize| -> Vec<usize> {
        (0..width).filter(|&s| first[i * width + s] && fits(i, s) && last[(i + 1) * width + s]).map(|s| i + s).collect()
    };
    let mut names = Vec::with_capacity(n);
    for (i, shape) in shapes.iter().enumerate() {
        let candidates = candidates(i);
        match (candidates.as_slice(), shape) {
            ([only], _) => names.push(variables[*only].0.clone()),
            ([], _) => return Err(none_fits(i, *shape, variables)),
            (_, None) => names.push(String::new()),
            (several, Some(shape)) => {
                return Err(format!(
                    "parameter {i} of shape {shape:?} can be any of {}: give the names in order",
                    shown(several.iter().map(|&place| variables[place].0.as_str()))
                ));
            }
        }
    }
    Ok(names)
}

fn none_fits(i: usize, shape: Option<&[u64]>, variables: &[(String, Vec<u64>)]) -> String {
    let Some(shape) = shape else { return "its parameters do not fit the variables in order".to_string() };
    let same: Vec<&str> = variables.iter().filter(|(_, own)| own == shape).map(|(name, _)| name.as_str()).collect();
    match same.is_empty() {
        true => format!("parameter {i} has the shape {shape:?}, and none of the variables has"),
        false => format!(
            "no order of the variables fits all shapes; parameter {i} of shape {shape:?} would be one of {}",
            shown(same.into_iter())
        ),
    }
}

fn shown<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let text = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{text} and {} more", names.len() - SHOWN) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(list: &[(&str, &[u64])]) -> Vec<(String, Vec<u64>)> {
        list.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
    }

    #[test]
    fn buffers_and_tied_names_are_left_out_where_the_shapes_say_so() {
        let model = variables(&[("w", &[2, 3]), ("b", &[3]), ("count", &[]), ("v", &[4]), ("tied", &[2, 3])]);
        let shapes: [Option<&[u64]>; 3] = [Some(&[2, 3]), Some(&[3]), Some(&[4])];
        assert_eq!(align(&shapes, &model).unwrap(), ["w", "b", "v"]);
    }

    #[test]
    fn more_than_one_way_is_refused_with_the_candidates() {
        let model = variables(&[("a", &[3]), ("b", &[3]), ("c", &[4])]);
        let error = align(&[Some(&[3]), Some(&[4])], &model).unwrap_err();
        assert!(error.contains("parameter 0") && error.contains("`a`, `b`"), "{error}");
    }

    #[test]
    fn no_way_is_refused_with_what_has_the_shape() {
        let model = variables(&[("a", &[3]), ("b", &[4])]);
        let error = align(&[Some(&[4]), Some(&[3])], &model).unwrap_err();
        assert!(error.contains("`b`") || error.contains("`a`"), "{error}");
        let error = align(&[Some(&[5])], &model).unwrap_err();
        assert!(error.contains("[5]"), "{error}");
    }

    #[test]
    fn parameters_without_state_fit_anything() {
        let model = variables(&[("a", &[3]), ("b", &[4]), ("c", &[5])]);
        assert_eq!(align(&[None, Some(&[4]), None], &model).unwrap(), ["a", "b", "c"]);
        assert_eq!(align(&[None, Some(&[5])], &model).unwrap(), ["", "c"]);
    }
}
