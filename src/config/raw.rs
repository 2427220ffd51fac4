//! The configuration exactly as the file has it: keys, text, numbers; nothing checked yet.
//!
//! - Layer: word
//! - Takes: TOML.
//! - Gives: `Raw`, whose `Default` is what a missing key means, and `Raw::sample`, which has every key once.
//! - On failure: serde's error; `parse` finds unknown keys and wrong types before.
//! - See: `examples/mailtap.toml`, held equal to these defaults by a test; `docs/configuration.md`.

use serde::{Deserialize, Serialize};

/// Declares a table of the configuration: every key with its type and default.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($(#[$key_doc:meta])* $key:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$key_doc])* pub $key: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }
    };
}

mod tracker;

pub use tracker::{Tracker, Tracking, TrackingHost};

fn text(text: &str) -> String {
    text.to_owned()
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().copied().map(str::to_owned).collect()
}

table! {
    /// The whole file.
    Raw {
        /// Spool, checkpoints and dedupe store live here.
        state_dir: String = text("/var/lib/mailtap"),
        /// This host's name in events; empty: the system's.
        host: String = text(""),
        /// Logs.
        log: Log = Log::default(),
        /// Admin listener.
        admin: Admin = Admin::default(),
        /// Key files.
        keys: Keys = Keys::default(),
        /// The public tracking URL.
        tracking: Tracking = Tracking::default(),
        /// What is tracked.
        policy: Policy = Policy::default(),
        /// Copies for several recipients.
        split: Split = Split::default(),
        /// Who is tracked.
        consent: Consent = Consent::default(),
        /// The milter role.
        milter: Milter = Milter::default(),
        /// The tap role.
        tap: Tap = Tap::default(),
        /// The bounce role.
        bounce: Bounce = Bounce::default(),
        /// What tap and bounce say of a delivery.
        delivery: Delivery = Delivery::default(),
        /// The tracker role.
        tracker: Tracker = Tracker::default(),
        /// The spool.
        spool: Spool = Spool::default(),
        /// RabbitMQ.
        amqp: Amqp = Amqp::default(),
        /// The relay role.
        relay: Relay = Relay::default(),
        /// Google Analytics.
        ga4: Ga4 = Ga4::default(),
    }
}

table! {
    /// `[log]`
    Log {
        /// error, warn, info, debug, trace or off, and `,PART=LEVEL` for some parts.
        level: String = text("info"),
        /// auto, text or json.
        format: String = text("auto"),
    }
}

table! {
    /// `[admin]`: `/metrics`, `/healthz`, `/readyz`. One address for each process.
    Admin {
        /// `mailtap run`; empty: none.
        run: String = text("127.0.0.1:9740"),
        /// `mailtap milter`.
        milter: String = text("127.0.0.1:9741"),
        /// `mailtap tap`.
        tap: String = text("127.0.0.1:9742"),
        /// `mailtap tracker`.
        tracker: String = text("127.0.0.1:9743"),
        /// `mailtap relay`.
        relay: String = text("127.0.0.1:9744"),
        /// `mailtap forward`.
        forward: String = text("127.0.0.1:9745"),
    }
}

table! {
    /// `[keys]`
    Keys {
        /// The keyring file.
        keyring: String = text("keyring.json"),
        /// The pseudonym key.
        pseudonym_key: String = text("pseudonym.key"),
        /// The keyring of hand-offs.
        handoff: String = text("handoff.json"),
    }
}

table! {
    /// `[policy]`
    Policy {
        /// Domains of envelope senders whose mail is tracked; `*.example.org` takes the subdomains.
        sender_domains: Vec<String> = Vec::new(),
        /// Rewrite links.
        clicks: bool = true,
        /// Add the pixel.
        opens: bool = true,
        /// Rewrite links in text/plain too.
        text_links: bool = false,
        /// Rewrite AMP parts too; never done when the tracking URL is http.
        amp_parts: bool = true,
        /// Rewrite mail that carries a DKIM signature already (which breaks it).
        rewrite_dkim_signed: bool = false,
        /// Rewrite mail that a program sent on its own (`Auto-Submitted: auto-generated`, `auto-notified`).
        rewrite_auto_generated: bool = false,
        /// Rewrite answers by programs (`Auto-Submitted: auto-replied` and others).
        rewrite_auto_replies: bool = false,
        /// Rewrite the HTML of meeting invitations.
        rewrite_invitations: bool = false,
        /// Rewrite links in Outlook's conditional comments.
        outlook_comments: bool = true,
        /// Leave links whose text is their own URL.
        skip_visible_urls: bool = false,
        /// Leave login, one-time and unsubscribe links.
        skip_login_links: bool = true,
        /// More links to leave: `/segment` of the path, `parameter=` of the query, or a piece of either.
        skip_link_patterns: Vec<String> = Vec::new(),
        /// Hosts of links that are never rewritten; `*.example.org` takes the subdomains.
        skip_link_hosts: Vec<String> = Vec::new(),
        /// When not empty, only links to these hosts are rewritten, but for `skip_link_hosts`.
        only_link_hosts: Vec<String> = Vec::new(),
        /// Several recipients in one transaction: `shared`, `split` or `skip`.
        several_recipients: String = text("shared"),
        /// Links beyond so many in one message stay as they are.
        max_links: u64 = 1_000,
        /// Larger messages pass as they came.
        max_message: String = text("40MiB"),
        /// Messages of more MIME parts pass as they came.
        max_parts: u64 = 500,
        /// Messages whose parts are nested deeper pass as they came.
        max_depth: u64 = 20,
        /// The pixel; `{url}` is its address.
        pixel: String = text(DEFAULT_PIXEL),
        /// Where the pixel goes: `end`, `top` or `both`.
        pixel_at: String = text("end"),
        /// Headers that may name the campaign, first hit counts; `X-Mailtap-Campaign` always comes first.
        campaign_headers: Vec<String> = texts(CAMPAIGN_HEADERS),
        /// Campaigns by envelope sender, where no header names one.
        campaign_rules: Vec<CampaignRule> = Vec::new(),
        /// What is tracked of some mail, where it differs.
        rules: Vec<TrackingRule> = Vec::new(),
    }
}

table! {
    /// `[[policy.rules]]`
    TrackingRule {
        /// Domains of envelope senders; empty: all.
        sender_domains: Vec<String> = Vec::new(),
        /// Domains of recipients; empty: all.
        recipient_domains: Vec<String> = Vec::new(),
        /// Rewrite links; absent: as `policy.clicks`.
        clicks: Option<bool> = None,
        /// Add the pixel; absent: as `policy.opens`.
        opens: Option<bool> = None,
    }
}

/// The pixel as it stands in the configuration.
pub const DEFAULT_PIXEL: &str = r#"<img src="{url}" width="1" height="1" alt="" style="position:absolute;display:block;width:1px;height:1px;border:0;margin:0;padding:0">"#;

/// What applications and mailing platforms already send.
pub const CAMPAIGN_HEADERS: &[&str] = &[
    "X-Campaign",
    "X-Campaign-ID",
    "X-CampaignId",
    "X-Mailgun-Campaign-Id",
    "X-Mailgun-Tag",
    "X-PM-Tag",
    "X-MC-Tags",
    "X-Mailjet-Campaign",
    "X-Mailin-Tag",
    "X-GreenArrow-MailClass",
    "X-MSYS-API",
    "X-SMTPAPI",
    "X-SES-MESSAGE-TAGS",
    "Feedback-ID",
    "List-Id",
];

table! {
    /// `[[policy.campaign_rules]]`
    CampaignRule {
        /// An address, a domain, or `*.domain`.
        sender: String = text(""),
        /// The campaign id.
        campaign: String = text(""),
    }
}

table! {
    /// `[split]`: with `policy.several_recipients = "split"`.
    Split {
        /// The port of our own Postfix that takes copies and asks no milter of ours.
        address: String = text("127.0.0.1:10026"),
        /// A message with more recipients is shared.
        max_recipients: u64 = 50,
        /// All copies of a message must be through by then; at most half of `milter.message_timeout`.
        timeout: String = text("10s"),
    }
}

table! {
    /// `[consent]`: the answer for everybody.
    Consent {
        /// granted or denied.
        clicks: String = text("granted"),
        /// granted or denied.
        opens: String = text("granted"),
        /// granted or denied: the visitor's cookie, and hand-offs.
        identity: String = text("denied"),
        /// Recipients who withdrew; empty: no such list.
        withdrawn_file: String = text(""),
    }
}

table! {
    /// `[milter]`
    Milter {
        /// Whether `mailtap run` runs it.
        enabled: bool = true,
        /// `unix:PATH` or `inet:HOST:PORT`.
        listen: String = text("unix:/var/spool/postfix/mailtap/milter.sock"),
        /// Mode of the Unix socket.
        socket_mode: String = text("0660"),
        /// Group of the Unix socket; empty: that of a setgid directory, else postfix.
        socket_group: String = text(""),
        /// What `milter_default_action` says in main.cf: accept or tempfail.
        default_action: String = text("tempfail"),
        /// Directories whose main.cf has to say the same; the milter asks `postconf`.
        postfix_config_dirs: Vec<String> = texts(&["/etc/postfix"]),
        /// Believe `tempfail` where no main.cf can be asked that names the milter.
        trust_default_action: bool = false,
        /// `message_size_limit` of a Postfix that can't be asked, like 10240000B; 0B: none; empty: its default.
        message_size_limit: String = text(""),
        /// Connections at once.
        max_connections: u64 = 1_000,
        /// Beyond it the message passes unmodified.
        message_timeout: String = text("20s"),
        /// A session may say nothing for as long.
        idle_timeout: String = text("7210s"),
        /// For the first command of a connection.
        first_timeout: String = text("30s"),
        /// For a command within headers and body.
        content_timeout: String = text("300s"),
        /// For Postfix to take bytes.
        write_timeout: String = text("60s"),
        /// Memory for messages under way, all connections together.
        max_memory: String = text("1GiB"),
        /// A message with more headers passes unmodified.
        max_headers: u64 = 2_000,
        /// All headers of a message together.
        max_header_size: String = text("1MiB"),
        /// A message with more recipients passes unmodified.
        max_recipients: u64 = 50_000,
        /// Sessions may take as long to end at a stop.
        drain: String = text("20s"),
    }
}

table! {
    /// `[tap]`
    Tap {
        /// Whether `mailtap run` runs it.
        enabled: bool = true,
        /// file, journal or stdin.
        source: String = text("file"),
        /// Log files to follow.
        files: Vec<String> = texts(&["/var/log/mail.log"]),
        /// Units of the journal.
        units: Vec<String> = texts(&["postfix@-.service", "postfix.service"]),
        /// More entries of the journal, by SYSLOG_IDENTIFIER.
        identifiers: Vec<String> = Vec::new(),
        /// Only lines of these syslog_names; empty: of any.
        syslog_names: Vec<String> = Vec::new(),
        /// Time zone of lines without one, like Europe/Warsaw; empty: the system's.
        time_zone: String = text(""),
        /// Relays of the site itself: what they took is not delivered yet.
        own_relays: Vec<String> = Vec::new(),
        /// Addresses that get copies of all mail (`always_bcc`): their deliveries are no events.
        copy_recipients: Vec<String> = Vec::new(),
        /// Messages followed at once.
        max_tracked: u64 = 1_000_000,
    }
}

table! {
    /// `[bounce]`
    Bounce {
        /// Hosts whose log a tap reads: their own bounces are known from there. Empty: this one, where the tap is enabled.
        own_hosts: Vec<String> = Vec::new(),
    }
}

table! {
    /// `[delivery]`
    Delivery {
        /// Rules of bounce classes that come before the built-in ones.
        bounce_rules_file: String = text(""),
        /// Providers that come before the built-in ones: `mx.example.net=word`.
        providers: Vec<String> = Vec::new(),
        /// What servers said, in events: off, scrubbed or full.
        replies: String = text("off"),
    }
}

table! {
    /// `[spool]`
    Spool {
        /// Beyond it new events are refused.
        max_bytes: String = text("2GiB"),
        /// full or normal (SQLite's `synchronous`).
        sync: String = text("full"),
        /// How long an event may wait for somebody to take it.
        max_age: String = text("71h"),
        /// What becomes of one that waited longer: dead-letter or drop.
        too_old: String = text("dead-letter"),
        /// How long an event id is remembered.
        dedupe: String = text("96h"),
    }
}

table! {
    /// `[amqp]`
    Amqp {
        /// `amqp://` or `amqps://user@host:port/vhost`; empty: no RabbitMQ, the relay reads the spool.
        url: String = text(""),
        /// More addresses of the same cluster; any that answers is taken.
        urls: Vec<String> = Vec::new(),
        /// File with the password.
        password_file: String = text(""),
        /// Certificate authorities (PEM) that are trusted beside the system's.
        ca_file: String = text(""),
        /// The client's certificate chain, in PEM.
        client_certificate: String = text(""),
        /// Its key, in PEM.
        client_key: String = text(""),
        /// declare or check.
        topology: String = text("declare"),
        /// Prefix of exchange and queues.
        prefix: String = text("mailtap"),
        /// Events unconfirmed at once.
        prefetch: u64 = 2_000,
        /// How often the broker hands out an event whose relay dies with it.
        delivery_limit: u64 = 20,
        /// How long the broker lets an event be held: its own `consumer_timeout`.
        consumer_timeout: String = text("30m"),
        /// Work queues; with more than one, events are spread over them by recipient.
        partitions: u64 = 1,
        /// After which times events are tried again: a queue for each.
        retry_after: Vec<String> = texts(&["10s", "1m", "10m"]),
    }
}

table! {
    /// `[relay]`
    Relay {
        /// Whether `mailtap run` runs it.
        enabled: bool = true,
        /// Requests under way at once.
        max_in_flight: u64 = 256,
        /// Of them to one property; 0: all.
        max_per_property: u64 = 0,
        /// Requests to one property within an hour; 0: no limit.
        max_per_property_hour: u64 = 0,
        /// Of them over one HTTP/2 connection.
        streams_per_connection: u64 = 100,
        /// HTTP/2 without TLS, to a receiver that speaks it.
        h2c: bool = false,
        /// The numbers of the work queues that this relay takes, from 1; empty: all.
        queues: Vec<u64> = Vec::new(),
        /// Waits as long for more events of one client.
        batch_window: String = text("200ms"),
        /// One request may take as long.
        timeout: String = text("10s"),
        /// What became of a request is not known: keep (never twice) or retry (never lost).
        uncertain: String = text("keep"),
    }
}

table! {
    /// `[ga4]`
    Ga4 {
        /// G-…; empty: nothing is sent.
        measurement_id: String = text(""),
        /// File with the API secret.
        api_secret_file: String = text(""),
        /// Base URL: Google's, its EU one, or the site's own server-side GTM.
        url: String = text("https://www.google-analytics.com"),
        /// Path after the base URL.
        path: String = text("/mp/collect"),
        /// File with the token for the preview of a server-side GTM.
        preview_file: String = text(""),
        /// Types of events that count the recipient as an active user, unless a machine did it.
        engaged: Vec<String> = texts(&["opened", "clicked"]),
        /// Names of events.
        events: Ga4Events = Ga4Events::default(),
        /// Names of parameters.
        parameters: Ga4Parameters = Ga4Parameters::default(),
        /// Further properties, by campaign and sender domain.
        properties: Vec<Property> = Vec::new(),
    }
}

table! {
    /// `[ga4.events]`: the name of each type of event in GA4; empty: not sent.
    Ga4Events {
        /// `mailtap.message.accepted`
        accepted: String = text("email_sent"),
        /// `mailtap.message.delivered`
        delivered: String = text("email_delivered"),
        /// `mailtap.message.deferred`
        deferred: String = text("email_deferred"),
        /// `mailtap.message.bounced`
        bounced: String = text("email_bounced"),
        /// `mailtap.message.expired`
        expired: String = text("email_expired"),
        /// `mailtap.message.complained`
        complained: String = text("email_spam_report"),
        /// `mailtap.message.opened`
        opened: String = text("email_open"),
        /// `mailtap.link.clicked`
        clicked: String = text("email_click"),
    }
}

table! {
    /// `[ga4.parameters]`: the name of each parameter in GA4; empty: left out.
    Ga4Parameters {
        /// See `docs/ga4.md`.
        event_id: String = text("event_id"),
        /// See `docs/ga4.md`.
        email_id: String = text("email_id"),
        /// See `docs/ga4.md`.
        campaign_id: String = text("campaign_id"),
        /// See `docs/ga4.md`.
        link_id: String = text("link_id"),
        /// See `docs/ga4.md`.
        link_domain: String = text("link_domain"),
        /// See `docs/ga4.md`.
        link_path: String = text("link_path"),
        /// See `docs/ga4.md`.
        bounce_type: String = text("bounce_type"),
        /// See `docs/ga4.md`.
        bounce_code: String = text("bounce_code"),
        /// The rule's explanation; left out.
        bounce_reason: String = text(""),
        /// See `docs/ga4.md`.
        provider: String = text("provider"),
        /// See `docs/ga4.md`.
        attempt: String = text("attempt"),
        /// See `docs/ga4.md`.
        delay_ms: String = text("delay_ms"),
        /// See `docs/ga4.md`.
        is_machine: String = text("is_machine"),
        /// See `docs/ga4.md`.
        machine_rule: String = text("machine_rule"),
        /// See `docs/ga4.md`.
        network: String = text("network"),
        /// See `docs/ga4.md`.
        agent: String = text("agent"),
        /// See `docs/ga4.md`.
        upgrade: String = text("upgrade"),
        /// See `docs/ga4.md`.
        implied: String = text("implied"),
        /// See `docs/ga4.md`.
        unique: String = text("unique"),
        /// See `docs/ga4.md`.
        late: String = text("late"),
        /// See `docs/ga4.md`.
        session_id: String = text("session_id"),
        /// See `docs/ga4.md`.
        engagement_time_msec: String = text("engagement_time_msec"),
    }
}

table! {
    /// `[[ga4.properties]]`
    Property {
        /// Campaigns that belong to it, whatever their sender.
        campaigns: Vec<String> = Vec::new(),
        /// Sender domains that belong to it.
        sender_domains: Vec<String> = Vec::new(),
        /// G-…
        measurement_id: String = text(""),
        /// File with the API secret.
        api_secret_file: String = text(""),
        /// Base URL; empty: that of `[ga4]`.
        url: String = text(""),
    }
}

impl Raw {
    /// The defaults, with one entry in every list of tables: every key that exists, with its type.
    #[must_use]
    pub fn sample() -> Self {
        let mut raw = Self::default();
        raw.policy.campaign_rules.push(CampaignRule::default());
        raw.policy.rules.push(TrackingRule {
            clicks: Some(true),
            opens: Some(true),
            ..TrackingRule::default()
        });
        raw.ga4.properties.push(Property::default());
        raw.tracking.hosts.push(TrackingHost::default());
        raw.relay.queues.push(1);
        raw
    }
}
