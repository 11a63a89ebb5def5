//! Aligned columns for people.

/// A table that is printed once it is complete.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|title| title.to_string()).collect()] }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Table {
    /// Two spaces between columns; numbers to the right, as far as a column has nothing else.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: usize, column: usize| self.rows[row].get(column).map_or("", String::as_str);
        let width =
            |column| (0..self.rows.len()).map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let is_number = |text: &str| text == "-" || text.parse::<f64>().is_ok();
        let numeric: Vec<bool> =
            (0..columns).map(|column| (1..self.rows.len()).all(|row| is_number(cell(row, column)))).collect();
        for row in 0..self.rows.len() {
            let mut line = String::new();
            for column in 0..columns {
                let (text, width) = (cell(row, column), widths[column]);
                let gap = if column == 0 { "" } else { "  " };
                line += &if numeric[column] {
                    format!("{gap}{text:>width$}")
                } else {
                    format!("{gap}{text:<width$}")
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["NAME", "COUNT"]);
        table.row(["a-long-name".into(), "7".into()]);
        table.row(["ü".into(), "1234567".into()]);
        assert_eq!(table.to_string(), "NAME           COUNT\na-long-name        7\nü            1234567\n");
    }
}
