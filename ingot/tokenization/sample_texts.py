"""A small text in ten languages (three sentences of the same meaning) and code in five, written for this project.

Enough to see how a tokenizer treats a language on a machine without a corpus; not enough for the second decimal.
"""

NASTY = (
    "", " ", "  ", "\n", "\t\tx", " one", "one ", "  two  spaces ", "line\r\nline\n\n\n  \tindented\n",
    "naïve café, größer, e\u0301 and é, \ufb01ne \u2460 \u00bd \uff21", "\u65e5\u672c\u8a9e \u0627\u0644\u0639\u0631"
    "\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940", "\U0001f469\u200d\U0001f467 \U0001f642\ufe0f",
    "\x00\x07\x7f\x80\u00a0\u2009\u3000.", "\ufeffmark \ufffd \ue000 \U0010fffd", "I'LL don't WE'VE 1234567 3.14",
    "def f(x):\n\treturn  x  # ok", "<0x41> <0xE6><0x97> </s> <s> <unk> <|x|> [PAD] ##ing", "A \u0130\u0131\u1e9e",
)  # fmt: skip

# U+2581: SentencePiece writes it for a space, so that a text that holds it comes back with a space instead
SPACE_SIGN = "\u2581"

LANGUAGES = {
    "English": "Every morning the baker opens her shop before the sun rises. Children on their way to school stop at "
    "the window and count the warm loaves. On 14 March 2025 she sold 312 rolls, more than ever before!",
    "German": "Jeden Morgen öffnet die Bäckerin ihren Laden, bevor die Sonne aufgeht. Kinder bleiben auf dem Schulweg "
    "am Fenster stehen und zählen die warmen Brote. Am 14. März 2025 verkaufte sie 312 Brötchen, mehr als je zuvor!",
    "French": "Chaque matin, la boulangère ouvre sa boutique avant le lever du soleil. Les enfants qui vont à l'école "
    "s'arrêtent devant la vitrine et comptent les pains chauds. Le 14 mars 2025, elle a vendu 312 petits pains, plus "
    "que jamais !",
    "Spanish": "Cada mañana la panadera abre su tienda antes de que salga el sol. Los niños que van a la escuela se "
    "paran ante la ventana y cuentan los panes calientes. El 14 de marzo de 2025 vendió 312 "
    "panecillos, ¡más que nunca!",
    "Turkish": "Fırıncı her sabah güneş doğmadan dükkânını açar. Okula giden çocuklar vitrinin önünde durup sıcak "
    "ekmekleri sayar. 14 Mart 2025'te her zamankinden çok, tam 312 küçük ekmek sattı!",
    "Russian": "Каждое утро хозяйка пекарни открывает лавку ещё до восхода солнца. Дети по дороге в школу "
    "останавливаются у окна и считают тёплые буханки. 14 марта 2025 года она продала 312 булочек, больше, чем "
    "когда-либо!",
    "Arabic": "كل صباح تفتح الخبازة دكانها قبل شروق الشمس. يقف الأطفال في طريقهم إلى المدرسة أمام النافذة ويعدون "
    "الأرغفة الساخنة. في 14 مارس 2025 باعت 312 رغيفا صغيرا، أكثر من أي وقت مضى!",
    "Hindi": "हर सुबह बेकरी वाली सूरज उगने से पहले अपनी दुकान खोलती है। स्कूल जाते हुए बच्चे खिड़की पर रुककर गरम रोटियाँ गिनते हैं। "
    "14 मार्च 2025 को उसने 312 छोटी रोटियाँ बेचीं, पहले से कहीं ज़्यादा!",
    "Chinese": "每天早上，面包师在太阳升起之前就打开店门。上学路上的孩子们停在橱窗前，数着热乎乎的面包。"
    "2025年3月14日，她卖出了312个小面包，比以往任何时候都多！",
    "Japanese": "パン屋の主人は毎朝、日が昇る前に店を開けます。学校へ向かう子どもたちは"
    "窓の前で立ち止まり、焼きたてのパンを数えます。"
    "2025年3月14日には小さなパンが312個も売れ、これまでで一番多い日になりました！",
}  # fmt: skip
WITHOUT_SPACES = ("Chinese", "Japanese")  # a character counts as a word

CODE = {
    "Python": '''\
def moving_average(values: list[float], width: int = 3) -> list[float]:
    """The mean of every `width` neighbours."""
    if width < 1 or width > len(values):
        raise ValueError(f"width must be 1 to {len(values)}, not {width}")
    sums = [sum(values[i : i + width]) for i in range(len(values) - width + 1)]
    return [total / width for total in sums]
''',
    "C": """\
#include <stdio.h>

/* Prints the prime numbers below a limit. */
int main(void) {
    const int limit = 100;
    for (int n = 2; n < limit; ++n) {
        int prime = 1;
        for (int d = 2; d * d <= n; ++d)
            if (n % d == 0) { prime = 0; break; }
        if (prime) printf("%d\\n", n);
    }
    return 0;
}
""",
    "JavaScript": """\
// Counts words, whatever their case.
export function countWords(text) {
  const counts = new Map();
  for (const word of text.toLowerCase().match(/\\p{L}+/gu) ?? []) {
    counts.set(word, (counts.get(word) || 0) + 1);
  }
  return [...counts.entries()].sort((a, b) => b[1] - a[1]).slice(0, 10);
}
""",
    "Rust": """\
use std::collections::HashMap;

/// The key with the largest value, if there is one.
pub fn largest<'a>(scores: &'a HashMap<String, u64>) -> Option<&'a str> {
    scores
        .iter()
        .max_by_key(|(_, &score)| score)
        .map(|(name, _)| name.as_str())
}
""",
    "SQL": """\
-- Customers who bought more this year than last.
SELECT c.name, SUM(o.total) AS spent
FROM customers AS c
JOIN orders AS o ON o.customer_id = c.id
WHERE o.ordered_at >= DATE '2025-01-01'
GROUP BY c.id, c.name
HAVING SUM(o.total) > c.spent_last_year
ORDER BY spent DESC LIMIT 20;
""",
}  # fmt: skip


def all_samples() -> list[str]:
    """Every sample text, languages first."""
    return [*LANGUAGES.values(), *CODE.values()]
