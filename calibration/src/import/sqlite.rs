//! Reads tables of an SQLite file (file format 3, <https://www.sqlite.org/fileformat2.html>), nothing else: no queries, no
//! indices, no writing. Enough for profilers' exports, without a C library.
//!
//! Every offset is checked; a damaged file is an error, never a loop or a panic.

use super::ImportError;

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// NULL.
    Null,
    /// Whole number.
    Integer(i64),
    /// Real number.
    Real(f64),
    /// Text; bytes that are not UTF-8 are replaced.
    Text(String),
    /// Blob (its length).
    Blob(usize),
}

impl Value {
    /// The number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(i) => Some(*i as f64),
            Self::Real(r) => Some(*r),
            _ => None,
        }
    }
    /// The whole number, if it is one.
    pub fn integer(&self) -> Option<i64> {
        if let Self::Integer(i) = self { Some(*i) } else { None }
    }
    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(t) = self { Some(t) } else { None }
    }
}

/// Rows of a table with the names of its columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// Column names as declared.
    pub columns: Vec<String>,
    /// Rows in the order of their row numbers.
    pub rows: Vec<Vec<Value>>,
}

impl Rows {
    /// Number of a column.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.eq_ignore_ascii_case(name))
    }
}

/// First bytes of every SQLite file.
pub const MAGIC: &[u8] = b"SQLite format 3\0";

/// Deepest tree that is believed: 20 levels hold more rows than a file can.
const DEEPEST: usize = 20;

/// An SQLite file in memory.
#[derive(Debug)]
pub struct Database<'a> {
    bytes: &'a [u8],
    page_size: usize,
    /// Bytes of a page that hold content.
    usable: usize,
}

fn damaged(reason: impl Into<String>) -> ImportError {
    ImportError::Kind { expected: "a whole SQLite file", reason: reason.into() }
}

fn cut_off() -> ImportError {
    damaged("it points outside itself (cut off?)")
}

/// Big-endian number of up to eight bytes at an offset.
fn big_endian(bytes: &[u8], at: usize, len: usize) -> Result<u64, ImportError> {
    let slice = at.checked_add(len).and_then(|end| bytes.get(at..end)).ok_or_else(cut_off)?;
    Ok(slice.iter().fold(0, |sum, &b| sum << 8 | u64::from(b)))
}

/// A variable-length number and its length.
fn varint(bytes: &[u8], at: usize) -> Result<(u64, usize), ImportError> {
    let mut value = 0_u64;
    for i in 0..9 {
        let byte = *at.checked_add(i).and_then(|p| bytes.get(p)).ok_or_else(cut_off)?;
        if i == 8 {
            return Ok((value << 8 | u64::from(byte), 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Ok((value, i + 1));
        }
    }
    Err(cut_off())
}

impl<'a> Database<'a> {
    /// Opens a file's bytes.
    ///
    /// # Errors
    /// When it is no SQLite file, or one with UTF-16 text.
    pub fn open(bytes: &'a [u8]) -> Result<Self, ImportError> {
        if !bytes.starts_with(MAGIC) {
            return Err(damaged("it does not start with `SQLite format 3`"));
        }
        let page_size = match big_endian(bytes, 16, 2)? {
            1 => 65_536,
            n if n >= 512 && n.is_power_of_two() => n as usize,
            n => return Err(damaged(format!("its pages have {n} bytes"))),
        };
        let reserved = big_endian(bytes, 20, 1)? as usize;
        if big_endian(bytes, 56, 4)? > 1 {
            return Err(damaged("its text is UTF-16; export it as UTF-8"));
        }
        let usable = page_size.checked_sub(reserved).filter(|u| *u >= 480);
        Ok(Self { bytes, page_size, usable: usable.ok_or_else(|| damaged("its pages hold nothing"))? })
    }

    fn page(&self, number: u64) -> Result<&'a [u8], ImportError> {
        let start = usize::try_from(number).ok().and_then(|n| n.checked_sub(1)?.checked_mul(self.page_size));
        let start = start.ok_or_else(cut_off)?;
        self.bytes.get(start..start.saturating_add(self.page_size)).ok_or_else(cut_off)
    }

    /// Payloads of all rows under a page, with row numbers.
    fn walk(
        &self,
        number: u64,
        depth: usize,
        visited: &mut usize,
        out: &mut Vec<(i64, Vec<u8>)>,
    ) -> Result<(), ImportError> {
        *visited += 1;
        if depth > DEEPEST || *visited > self.bytes.len() / self.page_size + 1 {
            return Err(damaged("its pages point in circles"));
        }
        let page = self.page(number)?;
        let base = if number == 1 { 100 } else { 0 };
        let kind = big_endian(page, base, 1)?;
        let cells = big_endian(page, base + 3, 2)? as usize;
        let pointers = base + if kind == 0x05 { 12 } else { 8 };
        for cell in 0..cells {
            let at = big_endian(page, pointers + 2 * cell, 2)? as usize;
            match kind {
                0x05 => self.walk(big_endian(page, at, 4)?, depth + 1, visited, out)?,
                0x0d => out.push(self.leaf(page, at)?),
                other => return Err(damaged(format!("page {number} is of kind {other}, not of a table"))),
            }
        }
        if kind == 0x05 {
            self.walk(big_endian(page, base + 8, 4)?, depth + 1, visited, out)?;
        }
        Ok(())
    }

    /// Row number and payload of a cell, overflow pages included.
    fn leaf(&self, page: &[u8], at: usize) -> Result<(i64, Vec<u8>), ImportError> {
        let (length, a) = varint(page, at)?;
        let (row, b) = varint(page, at + a)?;
        let start = at + a + b;
        let length = usize::try_from(length).ok().filter(|l| *l <= self.bytes.len()).ok_or_else(cut_off)?;
        let most = self.usable - 35;
        let local = if length <= most {
            length
        } else {
            let least = (self.usable - 12) * 32 / 255 - 23;
            let fitting = least + (length - least) % (self.usable - 4);
            if fitting <= most { fitting } else { least }
        };
        let mut payload = page.get(start..start + local).ok_or_else(cut_off)?.to_vec();
        let mut next = if local < length { big_endian(page, start + local, 4)? } else { 0 };
        while payload.len() < length {
            let overflow = self.page(next)?;
            let take = (length - payload.len()).min(self.usable - 4);
            payload.extend_from_slice(overflow.get(4..4 + take).ok_or_else(cut_off)?);
            next = big_endian(overflow, 0, 4)?;
        }
        Ok((row as i64, payload))
    }

    fn table(&self, root: u64) -> Result<Vec<(i64, Vec<Value>)>, ImportError> {
        let mut payloads = Vec::new();
        self.walk(root, 0, &mut 0, &mut payloads)?;
        payloads.into_iter().map(|(row, payload)| Ok((row, record(&payload)?))).collect()
    }

    /// A table by name; `None` if there is none.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn rows(&self, name: &str) -> Result<Option<Rows>, ImportError> {
        for (_, row) in self.table(1)? {
            let [kind, own, _, root, sql] = &row[..] else {
                return Err(damaged("its list of tables has another shape"));
            };
            if kind.text() != Some("table") || !own.text().is_some_and(|n| n.eq_ignore_ascii_case(name)) {
                continue;
            }
            let (Some(root), Some(sql)) = (root.integer(), sql.text()) else { return Err(cut_off()) };
            if sql.to_ascii_uppercase().contains("WITHOUT ROWID") {
                return Err(damaged(format!("table {name} has no row numbers, which is not read")));
            }
            let (columns, row_number) = columns(sql);
            let rows = self
                .table(u64::try_from(root).map_err(|_| cut_off())?)?
                .into_iter()
                .map(|(number, mut values)| {
                    // Columns added later are missing in older rows; a row-number column is stored as NULL.
                    values.resize(columns.len(), Value::Null);
                    if let Some(value) = row_number.and_then(|c| values.get_mut(c)) {
                        *value = Value::Integer(number);
                    }
                    values
                })
                .collect();
            return Ok(Some(Rows { columns, rows }));
        }
        Ok(None)
    }
}

/// Values of a row.
fn record(payload: &[u8]) -> Result<Vec<Value>, ImportError> {
    let (header, mut at) = varint(payload, 0)?;
    let header = usize::try_from(header).map_err(|_| cut_off())?;
    let mut body = header;
    let mut values = Vec::new();
    while at < header {
        let (kind, len) = varint(payload, at)?;
        at += len;
        let take = |len: usize| -> Result<&[u8], ImportError> {
            body.checked_add(len).and_then(|end| payload.get(body..end)).ok_or_else(cut_off)
        };
        let (value, size) = match kind {
            0 => (Value::Null, 0),
            1..=6 => {
                let size = [1, 2, 3, 4, 6, 8][kind as usize - 1];
                let raw = big_endian(take(size)?, 0, size)?;
                let shift = 64 - 8 * size as u32;
                (Value::Integer((raw << shift) as i64 >> shift), size)
            }
            7 => (Value::Real(f64::from_bits(big_endian(take(8)?, 0, 8)?)), 8),
            8 | 9 => (Value::Integer(kind as i64 - 8), 0),
            10 | 11 => return Err(damaged("a row has a value of an unknown kind")),
            blob if blob % 2 == 0 => {
                let size = usize::try_from((blob - 12) / 2).map_err(|_| cut_off())?;
                (Value::Blob(take(size)?.len()), size)
            }
            text => {
                let size = usize::try_from((text - 13) / 2).map_err(|_| cut_off())?;
                (Value::Text(String::from_utf8_lossy(take(size)?).into_owned()), size)
            }
        };
        body += size;
        values.push(value);
    }
    Ok(values)
}

/// Column names of a `CREATE TABLE`, and which one is the row number.
fn columns(sql: &str) -> (Vec<String>, Option<usize>) {
    let inner = sql.split_once('(').map_or("", |(_, rest)| rest);
    let mut parts = vec![String::new()];
    let mut depth = 0_i32;
    for c in inner.chars() {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => break,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    let mut names = Vec::new();
    let mut row_number = None;
    for part in parts {
        // Profilers write comments behind columns.
        let text: String =
            part.lines().map(|l| l.split("--").next().unwrap_or("")).collect::<Vec<_>>().join(" ");
        let mut words = text.split_whitespace();
        let Some(first) = words.next() else { continue };
        let rest = words.collect::<Vec<_>>().join(" ").to_ascii_uppercase();
        if ["CONSTRAINT", "PRIMARY", "UNIQUE", "FOREIGN", "CHECK"]
            .iter()
            .any(|k| first.to_ascii_uppercase().starts_with(k))
        {
            continue;
        }
        if rest.starts_with("INTEGER") && rest.contains("PRIMARY KEY") {
            row_number = Some(names.len());
        }
        names.push(first.trim_matches(['"', '`', '[', ']', '\'']).to_owned());
    }
    (names, row_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_a_declaration() {
        let sql = "CREATE TABLE T (id INTEGER NOT NULL PRIMARY KEY, -- comment\n \"a b\" TEXT, c DECIMAL(3, 4), PRIMARY KEY (c))";
        let (names, row_number) = columns(sql);
        assert_eq!(names[0], "id");
        assert_eq!(names.last().map(String::as_str), Some("c"));
        assert_eq!(row_number, Some(0));
    }

    #[test]
    fn numbers_of_variable_length() {
        assert_eq!(varint(&[0x7f], 0).unwrap(), (127, 1));
        assert_eq!(varint(&[0x81, 0x00], 0).unwrap(), (128, 2));
        assert_eq!(varint(&[0xff; 9], 0).unwrap(), (u64::MAX, 9));
        assert!(varint(&[0x80], 0).is_err());
        assert_eq!(record(&[2, 1, 0xff]).unwrap(), [Value::Integer(-1)]);
    }
}
