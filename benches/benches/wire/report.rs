//! Medians and ratios, as a table for people and as JSON for machines.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::peers::Subject;

/// What was measured once for each subject.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    /// Whether less is better.
    pub(crate) less: bool,
    /// Per subject in their order: what each run said, or why there is nothing.
    pub(crate) figures: Vec<Result<Vec<f64>, String>>,
}

impl Case {
    /// Runs `measure` for each subject in turn, `rounds` times: what disturbs one round disturbs all.
    pub(crate) fn alternate<const FIGURES: usize>(
        subjects: &[Subject],
        rounds: usize,
        mut measure: impl FnMut(&crate::peers::Running) -> std::io::Result<[f64; FIGURES]>,
    ) -> [Vec<Result<Vec<f64>, String>>; FIGURES] {
        let mut figures: [Vec<_>; FIGURES] =
            std::array::from_fn(|_| vec![Ok(Vec::new()); subjects.len()]);
        for _ in 0..rounds {
            for (place, subject) in subjects.iter().enumerate() {
                let measured = match &subject.running {
                    Ok(running) => measure(running).map_err(|error| error.to_string()),
                    Err(missing) => Err(missing.clone()),
                };
                for (index, of_figure) in figures.iter_mut().enumerate() {
                    match (&mut of_figure[place], &measured) {
                        (Ok(runs), Ok(told)) => runs.push(told[index]),
                        (failed @ Ok(_), Err(why)) => *failed = Err(why.clone()),
                        (Err(_), _) => {}
                    }
                }
            }
        }
        figures
    }
}

/// Prints a table: a line for each case, a column for each subject, and how ours (the first) compares with the others:
/// above 1 is better for us.
pub(crate) fn print(title: &str, names: &[&str], cases: &[Case]) {
    println!("\n{title}");
    let width = cases.iter().map(|case| case.name.len()).max().unwrap_or(0);
    print!("{:width$}  {:>8}", "", "");
    for name in names {
        print!("  {name:>14}");
    }
    for name in &names[1..] {
        print!("  {:>17}", format!("vs {name}"));
    }
    println!();
    for case in cases {
        print!("{:width$}  {:>8}", case.name, case.unit);
        let medians: Vec<_> = case.figures.iter().map(median).collect();
        for (figure, runs) in medians.iter().zip(&case.figures) {
            match (figure, runs) {
                (Some(figure), _) => print!("  {figure:>14.0}"),
                (None, Err(why)) => print!("  {:>14}", clip(why)),
                (None, Ok(_)) => print!("  {:>14}", "-"),
            }
        }
        for theirs in &medians[1..] {
            match ratio(case, medians[0], *theirs) {
                Some(ratio) => print!("  {ratio:>17.2}"),
                None => print!("  {:>17}", "-"),
            }
        }
        println!();
    }
}

/// Everything that was measured, for the file.
pub(crate) fn to_json(title: &str, names: &[&str], cases: &[Case]) -> Value {
    let case = |case: &Case| {
        let subjects = names
            .iter()
            .zip(&case.figures)
            .map(|(name, runs)| match runs {
                Ok(runs) => {
                    json!({"name": name, "median": median(&Ok(runs.clone())), "runs": runs})
                }
                Err(why) => json!({"name": name, "missing": why}),
            });
        let subjects: Vec<_> = subjects.collect();
        json!({"case": case.name, "unit": case.unit, "less_is_better": case.less, "subjects": subjects})
    };
    let cases: Vec<_> = cases.iter().map(case).collect();
    json!({"table": title, "cases": cases})
}

/// Beside what criterion writes: `target/criterion/wire.json`.
pub(crate) fn file() -> Option<PathBuf> {
    let here = std::env::current_exe().ok()?;
    let target = here.ancestors().nth(3)?;
    let folder = target.join("criterion");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("wire.json"))
}

fn ratio(case: &Case, ours: Option<f64>, theirs: Option<f64>) -> Option<f64> {
    let (ours, theirs) = (ours?, theirs?);
    Some(if case.less {
        theirs / ours
    } else {
        ours / theirs
    })
}

fn median(runs: &Result<Vec<f64>, String>) -> Option<f64> {
    let mut sorted = runs.as_ref().ok()?.clone();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn clip(text: &str) -> String {
    text.chars().take(14).collect()
}
