//! `mailtap init`: a complete configuration with fresh keys.
//!
//! - Layer: cli
//! - Takes: the directory, the tracking URL, the sender domains, and what else is known.
//! - Gives: `mailtap.toml` with every key and its explanation, `keyring.json` and `pseudonym.key` (0600), and the settings for
//!   Postfix.
//! - On failure: nothing that exists is overwritten; a configuration that would not pass `config check` is not written.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::exit::{Exit, Failure, OrExit, Result};
use super::postfix;
use super::print;
use crate::config::{Config, EXAMPLE};
use crate::service::files;

/// Write a complete configuration with fresh keys, and print the Postfix settings.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mailtap init --dir /etc/mailtap --tracking-url https://t.example.org --domain example.org \\
      --ga4 G-XXXXXXX --ga4-secret-file api-secret.txt
  mailtap init --dir /tmp/try --tracking-url http://127.0.0.1:8025 --domain example.org --domain '*.example.org'")]
pub(super) struct Args {
    /// Directory for the configuration and the keys; made if it is missing.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Public URL of the tracker, as recipients see it in links.
    #[arg(long, value_name = "URL")]
    tracking_url: String,
    /// Domain of envelope senders whose mail is tracked; may be repeated.
    #[arg(long = "domain", value_name = "DOMAIN", required = true, num_args = 1..)]
    domains: Vec<String>,
    /// GA4 measurement id.
    #[arg(long, value_name = "G-ID")]
    ga4: Option<String>,
    /// File with the GA4 API secret; copied to DIR/ga4.secret with mode 0600.
    #[arg(long, value_name = "FILE")]
    ga4_secret_file: Option<PathBuf>,
    /// Base URL of GA4, its EU endpoint, your server-side GTM, or a `mailtap collector`.
    #[arg(long, value_name = "URL")]
    ga4_url: Option<String>,
    /// RabbitMQ; a password in the URL goes to DIR/amqp.password with mode 0600.
    #[arg(long, value_name = "URL")]
    amqp: Option<String>,
    /// State directory: spool and checkpoints. Default: /var/lib/mailtap for a DIR below /etc, else DIR/state.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Postfix's log file.
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Where the milter listens: unix:/PATH or inet:HOST:PORT. Default: mailtap/milter.sock below Postfix's queue directory.
    #[arg(long, value_name = "ADDR")]
    milter_listen: Option<String>,
    /// Postfix's queue directory. Default: what `postconf` says, else /var/spool/postfix.
    #[arg(long, value_name = "DIR")]
    postfix_queue_dir: Option<PathBuf>,
    /// Where Postfix's main.cf lies, which the milter asks. Default: /etc/postfix.
    #[arg(long, value_name = "DIR")]
    postfix_config_dir: Option<PathBuf>,
    /// Where the tracker listens.
    #[arg(long, value_name = "ADDR")]
    tracker_listen: Option<String>,
    /// Where `mailtap run` shows /metrics, /healthz and /readyz.
    #[arg(long, value_name = "ADDR")]
    admin_listen: Option<String>,
}

/// Files of mode 0600 that go beside the configuration: name and content.
type Secrets = Vec<(&'static str, Vec<u8>)>;

impl Args {
    pub(super) fn run(self) -> Result {
        let dir = std::path::absolute(&self.dir).or_exit(Exit::Usage)?;
        let path = dir.join("mailtap.toml");
        let (keyring, pseudonym) = (dir.join("keyring.json"), dir.join("pseudonym.key"));
        for file in [&path, &keyring, &pseudonym] {
            if file.exists() {
                let text = format!("{}: exists already; `mailtap init` overwrites nothing", file.display());
                return Err(Failure::new(Exit::CantCreate, text));
            }
        }
        let queue_dir = self.postfix_queue_dir.clone().unwrap_or_else(postfix::queue_directory);
        let (text, secrets) = self.text(&dir, &queue_dir)?;
        self.rehearse(&text, &secrets, &path)?;
        fs::create_dir_all(&dir).map_err(|error| cannot(&dir, &error))?;
        crate::keys::create_ring(&keyring).or_exit(Exit::CantCreate)?;
        crate::keys::create_pseudonym_key(&pseudonym).or_exit(Exit::CantCreate)?;
        for (name, secret) in &secrets {
            files::replace(&dir.join(name), secret, 0o600)
                .map_err(|error| cannot(&dir.join(name), &error))?;
        }
        files::replace(&path, text.as_bytes(), 0o640).map_err(|error| cannot(&path, &error))?;
        let config = Config::load(&path).or_exit(Exit::Config)?;
        let mut made = vec!["mailtap.toml", "keyring.json", "pseudonym.key"];
        made.extend(secrets.iter().map(|(name, _)| *name));
        print(format!("Made in {}: {}\n", dir.display(), made.join(", ")))?;
        print(format!("State will be kept in {}\n\n", config.state_dir.display()))?;
        print(postfix::settings(&config, std::slice::from_ref(&queue_dir), &postfix::Decisions::default()))?;
        print(format!(
            "\nNext:\n  mailtap config check --config {0}\n  mailtap run --config {0}\n",
            path.display()
        ))
    }

    /// The text of the file, and the secrets that go beside it.
    fn text(&self, dir: &Path, queue_dir: &Path) -> Result<(String, Secrets)> {
        let mut text = Text(EXAMPLE.to_owned());
        let mut secrets = Vec::new();
        text.set("tracking", "url", &self.tracking_url);
        text.set_list("policy", "sender_domains", &self.domains);
        let state = self.state_dir.clone().unwrap_or_else(|| {
            if dir.starts_with("/etc") { "/var/lib/mailtap".into() } else { "state".into() }
        });
        text.set("", "state_dir", &state.to_string_lossy());
        let socket = || format!("unix:{}", queue_dir.join("mailtap/milter.sock").display());
        text.set("milter", "listen", &self.milter_listen.clone().unwrap_or_else(socket));
        if let Some(directory) = &self.postfix_config_dir {
            text.set_list("milter", "postfix_config_dirs", &[absolute(directory)?]);
        }
        if let Some(file) = &self.log_file {
            text.set_list("tap", "files", &[absolute(file)?]);
        }
        for (table, key, value) in [
            ("tracker", "listen", &self.tracker_listen),
            ("admin", "run", &self.admin_listen),
            ("ga4", "measurement_id", &self.ga4),
            ("ga4", "url", &self.ga4_url),
        ] {
            if let Some(value) = value {
                text.set(table, key, value);
            }
        }
        if let Some(file) = &self.ga4_secret_file {
            let secret = files::read_limited(file, 4_096).map_err(|error| unreadable(file, &error))?;
            text.set("ga4", "api_secret_file", "ga4.secret");
            secrets.push(("ga4.secret", secret));
        }
        if let Some(amqp) = &self.amqp {
            let (url, password) = split_password(amqp)?;
            text.set("amqp", "url", &url);
            if let Some(password) = password {
                text.set("amqp", "password_file", "amqp.password");
                secrets.push(("amqp.password", password.into_bytes()));
            }
        }
        Ok((text.0, secrets))
    }

    /// Checks the configuration in a directory of its own, before anything is written to the real one.
    fn rehearse(&self, text: &str, secrets: &Secrets, path: &Path) -> Result {
        let rehearsal = std::env::temp_dir().join(format!("mailtap-init-{:016x}", rand::random::<u64>()));
        // Made here, or not used: secrets come into it, and would be given to whom it belongs to.
        let made = fs::DirBuilder::new().mode(0o700).create(&rehearsal);
        made.map_err(|error| cannot(&rehearsal, &error))?;
        let checked = (|| {
            for name in ["keyring.json", "pseudonym.key"] {
                files::replace(&rehearsal.join(name), b"x", 0o600)?;
            }
            for (name, secret) in secrets {
                files::replace(&rehearsal.join(name), secret, 0o600)?;
            }
            files::replace(&rehearsal.join("mailtap.toml"), text.as_bytes(), 0o600)?;
            Ok(Config::load(&rehearsal.join("mailtap.toml")))
        })();
        let _ = fs::remove_dir_all(&rehearsal);
        let checked = checked.map_err(|error: std::io::Error| cannot(&rehearsal, &error))?;
        checked.map(drop).map_err(|mut error| {
            error.path = path.to_owned();
            Failure::new(Exit::Config, format!("nothing was written; {error}"))
        })
    }
}

fn absolute(path: &Path) -> Result<String> {
    Ok(std::path::absolute(path).or_exit(Exit::Usage)?.to_string_lossy().into_owned())
}

fn cannot(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::CantCreate, format!("{}: {error}", path.display()))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::NoInput, format!("{}: {error}", path.display()))
}

fn split_password(text: &str) -> Result<(String, Option<String>)> {
    let wrong = || Failure::new(Exit::Usage, "--amqp must be like amqp://user@host:5672/vhost or amqps://…");
    let mut url = url::Url::parse(text).map_err(|_| wrong())?;
    let password = url.password().map(|encoded| {
        let decoded = url::form_urlencoded::parse(format!("p={}", encoded.replace('+', "%2B")).as_bytes())
            .next()
            .map(|(_, value)| value.into_owned());
        decoded.unwrap_or_default()
    });
    url.set_password(None).map_err(|()| wrong())?;
    Ok((url.into(), password))
}

/// The text of a configuration in which commented keys are set.
struct Text(String);

impl Text {
    fn set(&mut self, table: &str, key: &str, value: &str) {
        self.put(table, key, &toml::Value::from(value).to_string());
    }

    fn set_list(&mut self, table: &str, key: &str, values: &[String]) {
        self.put(table, key, &toml::Value::from(values.to_vec()).to_string());
    }

    /// Replaces the line of a key within its table, commented or not.
    fn put(&mut self, table: &str, key: &str, value: &str) {
        let mut current = String::new();
        let lines = self.0.lines().map(|line| {
            if let Some(name) = line.trim_start_matches('#').strip_prefix('[') {
                current = name.trim_matches(['[', ']']).to_owned();
            }
            let is_key = line.trim_start_matches('#').split_once(" = ").is_some_and(|(name, _)| name == key);
            if is_key && current == table { format!("{key} = {value}") } else { line.to_owned() }
        });
        self.0 = lines.collect::<Vec<_>>().join("\n") + "\n";
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_init_sets_is_in_the_example() {
        for (table, key) in [
            ("tracking", "url"),
            ("policy", "sender_domains"),
            ("", "state_dir"),
            ("milter", "listen"),
            ("milter", "postfix_config_dirs"),
            ("tap", "files"),
            ("tracker", "listen"),
            ("admin", "run"),
            ("ga4", "measurement_id"),
            ("ga4", "url"),
            ("ga4", "api_secret_file"),
            ("amqp", "url"),
            ("amqp", "password_file"),
        ] {
            let mut text = Text(EXAMPLE.to_owned());
            text.set(table, key, "MARKER \"quoted\"");
            let changed = text.0.lines().zip(EXAMPLE.lines()).filter(|(new, old)| new != old);
            assert_eq!(changed.count(), 1, "{table}.{key}");
            let parsed: toml::Table = toml::from_str(&text.0).unwrap();
            let value = if table.is_empty() { &parsed[key] } else { &parsed[table][key] };
            assert_eq!(value.as_str(), Some("MARKER \"quoted\""), "{table}.{key}");
        }
    }

    #[test]
    fn a_password_leaves_the_url() {
        let (url, password) = split_password("amqp://u:p%40+ss@localhost:5672/v").unwrap();
        assert_eq!((url.as_str(), password.as_deref()), ("amqp://u@localhost:5672/v", Some("p@+ss")));
        assert_eq!(split_password("amqp://localhost").unwrap().1, None);
        let failure = split_password("u:secret@x").unwrap_err();
        assert!(!failure.message.contains("secret"));
    }
}
