//! What the two programs share: the command line.

use std::collections::HashMap;
use std::str::FromStr;

/// `--name value` pairs, `--name` switches and whatever is left, in order.
pub struct Args {
    pub positional: Vec<String>,
    values: HashMap<String, String>,
    switches: Vec<String>,
}

impl Args {
    /// Refuses names that are in neither list: a misspelt option of a test must not pass unseen.
    pub fn parse(
        words: impl IntoIterator<Item = String>,
        with_value: &[&str],
        switches: &[&str],
    ) -> Result<Self, String> {
        let mut args = Args {
            positional: Vec::new(),
            values: HashMap::new(),
            switches: Vec::new(),
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            match word.strip_prefix("--") {
                None => args.positional.push(word),
                Some(name) if switches.contains(&name) => args.switches.push(name.to_string()),
                Some(name) if with_value.contains(&name) => {
                    let value = words.next().ok_or(format!("--{name} needs a value"))?;
                    args.values.insert(name.to_string(), value);
                }
                Some(name) => return Err(format!("unknown option --{name}")),
            }
        }
        Ok(args)
    }

    pub fn switch(&self, name: &str) -> bool {
        self.switches.iter().any(|s| s == name)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    pub fn number<T: FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        match self.values.get(name) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| format!("--{name}: not a number: {text:?}")),
        }
    }
}

/// PCR seed of both programs when none is given.
pub const DEFAULT_SEED: u8 = 0x11;
