//! The configuration file of a running process, looked at when somebody asks for a reload.
//!
//! - Layer: cli
//! - Takes: the configuration in use, the file as it is now.
//! - Gives: a line that says which keys are other than at the start: they take effect at a restart.
//! - On failure: a file that can't be used is an error in the log; the one in use stays.
//! - See: `docs/configuration.md`.

use std::path::PathBuf;

use serde_json::Value;

use crate::config::{Config, ConfigError};

/// The configuration as it was at the start.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    used: Value,
}

impl ConfigFile {
    /// Remembers what is in use.
    pub(super) fn of(config: &Config) -> Self {
        Self { path: config.path.clone(), used: values(config) }
    }

    /// Tells of what was edited since the start. Values are not told: some are secret.
    pub(super) fn compare(&self) {
        let path = self.path.display();
        match self.changes() {
            Ok(keys) if keys.is_empty() => {
                tracing::info!(%path, "configuration unchanged");
                metrics::gauge!("mailtap_config_restart_needed").set(0.0);
            }
            Ok(keys) => {
                let keys = keys.join(", ");
                tracing::warn!(%path, keys, "configuration changed: these keys need a restart");
                metrics::gauge!("mailtap_config_restart_needed").set(1.0);
            }
            Err(error) => {
                tracing::error!(%error, "the configuration can't be used: the one in use stays, and a restart would fail");
                metrics::counter!("mailtap_config_failures_total").increment(1);
            }
        }
    }

    fn changes(&self) -> Result<Vec<String>, ConfigError> {
        let now = values(&Config::load(&self.path)?);
        let mut keys = Vec::new();
        differing(&self.used, &now, "", &mut keys);
        Ok(keys)
    }
}

fn values(config: &Config) -> Value {
    serde_json::to_value(&config.raw).unwrap_or_default()
}

/// Collects the keys whose values differ; a list is one value.
fn differing(one: &Value, other: &Value, path: &str, keys: &mut Vec<String>) {
    let (Value::Object(one), Value::Object(other)) = (one, other) else {
        if one != other {
            keys.push(path.to_owned());
        }
        return;
    };
    let added = other.keys().filter(|key| !one.contains_key(*key));
    for key in one.keys().chain(added) {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let at = |table: &serde_json::Map<String, Value>| table.get(key).cloned().unwrap_or_default();
        differing(&at(one), &at(other), &path, keys);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changed_keys_are_named() {
        let one = json!({"milter": {"drain": "20s", "listen": "a"}, "tap": {"files": ["a", "b"]}, "gone": 1});
        let other =
            json!({"milter": {"drain": "30s", "listen": "a"}, "tap": {"files": ["a"]}, "new": {"key": 2}});
        let mut keys = Vec::new();
        differing(&one, &other, "", &mut keys);
        assert_eq!(keys, ["gone", "milter.drain", "tap.files", "new"]);
        keys.clear();
        differing(&one, &one, "", &mut keys);
        assert!(keys.is_empty());
    }
}
