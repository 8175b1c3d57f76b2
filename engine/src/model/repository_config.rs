//! The config of a repository as the database and the API have it: a JSON object with the legacy hub's keys.

use serde_json::{Map, Value, json};

use super::Place;
use crate::config::Secret;
use crate::error::{Error, ErrorKind};

/// What a config says. The password is apart, so that nothing that shows a place can show it.
#[derive(Debug, Clone)]
pub struct RepositoryConfig {
    /// Where the images are.
    pub place: Place,
    /// For people; may be empty.
    pub description: String,
    /// The password of a share, in plain text.
    pub password: Option<Secret>,
}

/// Reads a config as generously as the legacy hub and its callers need: unknown keys are ignored, names match in any case,
/// `mount_options` is a text or a list, the password has either of its names.
///
/// # Errors
/// [`Invalid`](ErrorKind::Invalid) for a value of a wrong type, [`Unsupported`](ErrorKind::Unsupported) for a type that this hub does
/// not know. Whether the place is usable says [`Place::check`].
pub fn read_config(
    repository_type: &str,
    config: &Map<String, Value>,
) -> Result<RepositoryConfig, Error> {
    let keys = Keys::new(config);
    let place = match repository_type {
        "local" => Place::Local {
            path: keys.text("path")?,
        },
        "nfs" => Place::Nfs {
            server: keys.text("server")?,
            export_path: keys.text("export_path")?,
            mount_point: keys.text("mount_point")?,
            nfs_version: keys.text("nfs_version")?,
            mount_options: keys.words("mount_options")?,
        },
        "cifs" | "smb" => Place::Cifs {
            server: keys.text("server")?,
            share_name: keys.text("share_name")?.trim_matches('/').to_owned(),
            mount_point: keys.text("mount_point")?,
            username: keys.text("username")?,
            domain: keys.text("domain")?,
            mount_options: keys.words("mount_options")?,
        },
        other => {
            let shown: String = other.chars().take(80).collect();
            return Err(Error::new(
                ErrorKind::Unsupported,
                "repository type is not supported",
                format!("repository_type={shown:?}"),
            ));
        }
    };
    let named = [keys.text("password")?, keys.text("password_secret")?];
    Ok(RepositoryConfig {
        place,
        description: keys.text("description")?,
        password: named
            .into_iter()
            .find(|text| !text.is_empty())
            .map(Secret::new),
    })
}

/// The config of a place, without any secret.
#[must_use]
pub fn write_config(place: &Place, description: &str) -> Map<String, Value> {
    let mut fields = match place {
        Place::Local { path } => json!({"path": path}),
        Place::Nfs {
            server,
            export_path,
            mount_point,
            nfs_version,
            mount_options,
        } => json!({
            "server": server, "export_path": export_path, "mount_point": mount_point, "nfs_version": nfs_version,
            "mount_options": mount_options.join(","),
        }),
        Place::Cifs {
            server,
            share_name,
            mount_point,
            username,
            domain,
            mount_options,
        } => json!({
            "server": server, "share_name": share_name, "mount_point": mount_point, "username": username, "domain": domain,
            "mount_options": mount_options.join(","),
        }),
    };
    if !description.is_empty() {
        fields["description"] = json!(description);
    }
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// A config by its lower-case keys.
struct Keys<'a>(Vec<(String, &'a Value)>);

impl<'a> Keys<'a> {
    fn new(config: &'a Map<String, Value>) -> Self {
        let keys = config.iter().filter(|(_, value)| !value.is_null());
        Self(
            keys.map(|(key, value)| (key.to_lowercase(), value))
                .collect(),
        )
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| *value)
    }

    /// A text; absent is empty. What surrounds it is a slip of the keyboard.
    fn text(&self, key: &str) -> Result<String, Error> {
        match self.get(key) {
            None => Ok(String::new()),
            Some(Value::String(text)) if key.starts_with("password") => Ok(text.clone()),
            Some(Value::String(text)) => Ok(text.trim().to_owned()),
            Some(_) => Err(wrong_type(key, "a text")),
        }
    }

    /// Words: a list of texts, or one with commas.
    fn words(&self, key: &str) -> Result<Vec<String>, Error> {
        let texts: Vec<&str> = match self.get(key) {
            None => Vec::new(),
            Some(Value::String(text)) => vec![text],
            Some(Value::Array(items)) => {
                let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
                texts.ok_or_else(|| wrong_type(key, "a list of texts"))?
            }
            Some(_) => return Err(wrong_type(key, "a text or a list")),
        };
        let words = texts.iter().flat_map(|text| text.split(','));
        let words = words.map(str::trim).filter(|word| !word.is_empty());
        Ok(words.map(str::to_owned).collect())
    }
}

fn wrong_type(key: &str, expected: &str) -> Error {
    Error::invalid(format!("{key} must be {expected}"), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &str, config: &Value) -> Result<RepositoryConfig, Error> {
        read_config(kind, config.as_object().unwrap())
    }

    #[test]
    fn what_callers_send_is_understood() {
        let config = json!({"Server": " nas ", "export_path": "/e", "mount_options": ["ro, nolock", "soft"],
            "description": "für alle", "unknown": {"a": 1}, "nfs_version": null});
        let read_nfs = read("nfs", &config).unwrap();
        assert_eq!(
            read_nfs.place,
            Place::Nfs {
                server: "nas".to_owned(),
                export_path: "/e".to_owned(),
                mount_point: String::new(),
                nfs_version: String::new(),
                mount_options: ["ro", "nolock", "soft"].map(str::to_owned).to_vec(),
            }
        );
        assert_eq!(read_nfs.description, "für alle");
        for key in ["password", "password_secret"] {
            let config = json!({"server": "nas", "share_name": "/b/", "username": "u", key: " p w ", "mount_options": "seal,,x"});
            for kind in ["cifs", "smb"] {
                let read_smb = read(kind, &config).unwrap();
                assert_eq!(read_smb.password, Some(Secret::new(" p w ")));
                let shown = format!("{read_smb:?} {:?}", write_config(&read_smb.place, ""));
                assert!(!shown.contains("p w"), "{shown}");
            }
        }
        assert_eq!(
            read("s3", &json!({})).unwrap_err().kind,
            ErrorKind::Unsupported
        );
        for wrong in [
            json!({"path": 7}),
            json!({"path": ["a"]}),
            json!({"description": 1, "path": "/a"}),
        ] {
            assert_eq!(
                read("local", &wrong).unwrap_err().kind,
                ErrorKind::Invalid,
                "{wrong}"
            );
        }
        assert!(read("nfs", &json!({"mount_options": [1]})).is_err());
        assert!(read("nfs", &json!({"mount_options": {}})).is_err());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let places = [
            ("local", json!({"path": "/srv/a"})),
            (
                "nfs",
                json!({"server": "nas", "export_path": "/e", "mount_point": "/m", "nfs_version": "4", "mount_options": "a,b"}),
            ),
            (
                "cifs",
                json!({"server": "nas", "share_name": "s", "mount_point": "/m", "username": "u", "domain": "d", "mount_options": ""}),
            ),
        ];
        for (kind, config) in places {
            let first = read(kind, &config).unwrap();
            let written = write_config(&first.place, "why");
            let again = read_config(kind, &written).unwrap();
            assert_eq!(
                (again.place, again.description.as_str()),
                (first.place, "why")
            );
            let mut expected = config.clone();
            expected["description"] = json!("why");
            assert_eq!(Value::Object(written), expected);
        }
    }
}
