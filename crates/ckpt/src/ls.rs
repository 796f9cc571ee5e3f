//! `ckpt ls`: what is in a directory of checkpoints.

use crate::cli::Ls;
use crate::human;
use crate::output::{Exit, Output};
use crate::table::{Align, Table};
use tch_checkpoint::Error;
use tch_checkpoint::inspect::{self, DirectoryListing, OtherState};

pub fn run(args: &Ls, out: &mut Output) -> Result<Exit, Error> {
    let listing = inspect::list(&args.directory)?;
    print_checkpoints(&listing, out);
    print_others(&listing, out);
    out.document(&listing);
    Ok(Exit::Fine)
}

fn print_checkpoints(listing: &DirectoryListing, out: &mut Output) {
    if listing.checkpoints.is_empty() {
        let below: Vec<String> =
            listing.below.iter().take(10).map(|directory| directory.display().to_string()).collect();
        let hint = if below.is_empty() { String::new() } else { format!("; look into {}", below.join(", ")) };
        out.line(format!("no whole checkpoint in {}{hint}", listing.directory.display()));
        return;
    }
    let mut table = Table::new([
        ("NAME", Align::Left),
        ("STEP", Align::Right),
        ("SAVED", Align::Left),
        ("SIZE", Align::Right),
        ("TENSORS", Align::Right),
        ("METRICS", Align::Left),
        ("", Align::Left),
    ]);
    for entry in &listing.checkpoints {
        let marks = [
            (entry.latest, "latest"),
            (entry.permanent, "permanent"),
            (!entry.non_finite.is_empty(), "not finite"),
            (entry.unclean, "unclean"),
        ];
        let marks = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| mark.to_string());
        let mut marks: Vec<String> = marks.collect();
        marks.extend(entry.without.iter().map(|component| format!("without {component}")));
        marks.extend(entry.metadata.iter().map(|name| format!("has {name}")));
        table.row([
            entry.name.clone(),
            human::number(entry.step),
            human::time(entry.saved_at),
            human::bytes(entry.bytes),
            entry.tensors.to_string(),
            human::metrics(entry.metrics.iter().map(|(name, value)| (name.as_str(), *value))),
            marks.join(", "),
        ]);
    }
    table.print(out);
    if let Some((first, second)) = &listing.undecided {
        out.line("");
        out.line(format!("{first} and {second} are of different runs, and nothing decides which one is the latest"));
    }
}

fn print_others(listing: &DirectoryListing, out: &mut Output) {
    if listing.others.is_empty() {
        return;
    }
    out.line("");
    let mut table = Table::new([("NOT WHOLE", Align::Left), ("STATE", Align::Left), ("REASON", Align::Left)]);
    for other in &listing.others {
        table.row([other.name.clone(), state(other.state).to_string(), other.reason.clone()]);
    }
    table.print(out);
}

fn state(state: OtherState) -> &'static str {
    match state {
        OtherState::Damaged => "damaged",
        OtherState::Unreadable => "unreadable",
        OtherState::Link => "link",
        OtherState::MovedAside => "moved aside",
        OtherState::Superseded => "superseded",
        OtherState::UnfinishedSave => "unfinished save",
        OtherState::Removed => "removed",
        _ => "other",
    }
}
