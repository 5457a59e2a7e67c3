"""Texts by formal skill: ten that show it and ten that don't, judged by eye."""

TEXTS = {
    "sentences:2": (
        ["It rains. We stay in.", "Hello there! How are you?", "Dr. Smith came. He left.", "One line\nand another", "“Go!” he said.  She went.",
         "He paid 3.50 for it. That was cheap.", "J. S. Bach wrote it. I like it.", "Really?! Yes.", "It was late... We slept.", "(It rained.) We stayed in."],
        ["It rains.", "", "One. Two. Three.", "No end here", "A. B. C. D.", "It rains, and we stay in.", "Well. Well. Well.", "He paid 3.50 for it.",
         "Dr. Smith came.", "One line\nand another\nand a third"],
    ),
    "short:8": (
        ["Tea is ready now.", "I like rain", "One two three four five six seven eight", "Don't go out there!", "Yes, we can.", "Rain. Rain. Rain.",
         "A 12 b 13 c", "It's well-made, isn't it?", "Why do I ask?", "THE END IS NEAR"],
        ["", "Tea", "Rain falls", "One two three four five six seven eight nine", "1 2 3 4", "...", "I have never in my life seen so much rain.",
         "All of us have been here for many days now.", "a b c d e f g h i j", "no!"],
    ),
    "word:river": (
        ["The river is wide.", "River!", "a RIVER runs", "We sat by a river, alone.", "river", '"River," she said.', "A wide\nriver", "Is it a river?", "river's end? no: river", "(river)"],
        ["", "Rivers are wide.", "The riverbank", "A driver", "ri ver", "The stream is wide.", "r-i-v-e-r", "riverine", "the rive r", "upriver"],
    ),
    "lipogram:e": (
        ["I am now at work.", "A man can do it.", "Rain and fog all day", "Birds sing to us.", "DOGS ARK AT US? NO", "It is a long road.", "12 small dogs ran off", "Sun, sand, fish and salt.", "You and I do not run", "What a good day!"],
        ["", "I am", "We like it here a lot.", "THE MAN IS OUT", "dogs dogs dogs", "A big red bus", "He is not so tall", "I saw nothing but one E", "12 34 56 78", "A long trip home is fun"],
    ),
    "acrostic:map": (
        ["My dog barks. All is well. Please come.", "Maybe. Also. Perhaps.", "May I go? Ask him! Please do.", "Many came\nall left\npeace", "my tea. a cup. plain.",
         "“Mine!” he said.  All gone. Poor man.", "1 Man ran. 2 All fell. 3 Phew.", "Music plays. Anna sings. Peter sleeps.", "Milk? And tea? Please.", "M. Twain wrote. And read. Played, too."],
        ["", "map", "My dog barks. All is well.", "My dog. All well. Please. Stop.", "All is well. My dog. Please.", "The map is here.", "Milk and potatoes.", "May. Be. Please.", "Please. Ask. Me.", "Man ran. He fell. Pain."],
    ),
    "alliteration": (
        ["Peter picks purple plums.", "Big brown bears bite.", "We went west with Will.", "so Sam sat silently still", "All ants are able.", "I saw many mild mellow mornings.",
         "Five fine friends, full of hope.", "Can Carl carry cats?", "dog dog dog dog", "Tell Tom to talk."],
        ["", "Peter picks plums", "Big brown bears ran.", "We went. West wind.", "Sam sat and saw Sue.", "a b c d", "Never say no to nice things.", "Pots. Pans. Pins. Pens.", "One of our many.", "Tea tastes terrific"],
    ),
    "sorted": (
        ["- apple\n- bread\n- cake", "Buy:\n- ant\n- bee\n- cat\n- dog", "* a\n* b\n* c", "• Ann\n• Bob\n• Cy", "  - ink\n  - oil\n  - tar", "- Apple\n- bread\n- Cake", "- a\n\n- b\n\n- c",
         "List\n- car\n- cart\n- carts", "- 1\n- 2\n- 3", "- x y\n- x z\n- y\nThat's it."],
        ["", "- apple\n- bread", "- bread\n- apple\n- cake", "apple\nbread\ncake", "- a\n- b\n- b", "-a\n-b\n-c", "a - b - c", "1. a\n2. b\n3. c", "- c\n- b\n- a", "- a\n- c\n- b\n- d"],
    ),
    "numbered": (
        ["1. a\n2. b\n3. c", "Do:\n1. wash\n2. dry\n3. sleep\n4. eat", "1) one\n2) two\n3) three", "  1. a\n  2. b\n  3. c", "1. a\n\n2. b\n\n3. c", "First\n1. x\nthen\n2. y\nand\n3. z", "1.  a\n2.  b\n3.  c",
         "1. 5\n2. 6\n3. 7", "1. A\n2) B\n3. C", "1. a\n2. b\n3. c\n4. d\n5. e"],
        ["", "1. a\n2. b", "1. a\n3. b\n4. c", "2. a\n3. b\n4. c", "1 a\n2 b\n3 c", "1. a 2. b 3. c", "- a\n- b\n- c", "3. a\n2. b\n1. c", "1. a\n2. b\n2. c", "one. a\ntwo. b\nthree. c"],
    ),
    "json": (
        ['{"a": 1}', '{"a": "b", "c": [1, 2]}', ' {"a": null} ', '{"a": {"b": true}}', '{\n"x": 0.5\n}', '{"ü": "é"}', '{"a": ""}', '{"a": [], "b": {}}', '{"1": 1e3}', '{"a": "{}"}'],
        ["", "{}", "[1]", '"a"', "{'a': 1}", '{"a": 1,}', 'Here: {"a": 1}', '{"a": 1} done', "a: 1", '```json\n{"a": 1}\n```'],
    ),
    "arithmetic": (
        ["3 + 4 = 7", "We know that 12 - 5 = 7.", "2 x 3 = 6", "2*3=6", "8 / 2 = 4", "10 ÷ 5 = 2", "6 × 7 = 42, as ever", "1+1=2 and 2+2=4", "3 - 5 = -2", "9 − 4 = 5!"],
        ["", "3 + 4 = 8", "three plus four is seven", "3 + 4", "= 7", "1+1=2 and 2+2=5", "7 / 2 = 3", "4 / 0 = 0", "3 + 4 = 7.5", "x + 1 = 2 and 1 + 1 = 2"],
    ),
    "quotation": (
        ['He said, "Go home."', '"To be or not"', "“Good night,” she said.", 'A "small town" man', '"I am," he said, "very tired."', 'She wrote "see you soon" on it.', '"Yes, sir!"', 'Call it "a day".', "They say “time flies”.", '"What now?" I asked.'],
        ["", "He said, go home.", '"Go"', "'Go home now'", '"1 2 3"', 'Half a "quote', '""', "“Go”", '"a\nb"', "He said ''go home''"],
    ),
    "question": (
        ["How are you?", "It rains. Do you mind?", "Really, is it?", 'He asked, "Who is there?"', "Why not?", "a b?", "Yes! But when?", "You like it (don't you?)", "Where\nare they now?", "“Is it so?”"],
        ["", "It rains.", "How are you? Fine.", "How are you", "?", "What?", "Why? Because.", "I wonder why.", "Is it? I think so!", "Who is there?..."],
    ),
    "palindrome": (
        ["We met at noon.", "Level ground", "my Kayak", "a radar beam", "civic duty", "Anna came", "Madam, come in", "refer to it", "redder than that", "It is a rotor."],
        ["", "dad and mom", "We met at night.", "aaaa", "lever", "kayaks", "1221", "no on", "race car", "eve"],
    ),
    "lowercase": (
        ["we like rain a lot.", "it is late now!", "one two three four", "do you? i do not.", "12 small dogs ran off", "so it goes, and goes", "über alles ist es still", "#fun is what we want", "a b c d", "“go home now, please”"],
        ["", "we like rain", "We like rain a lot.", "we like Rain a lot", "WE LIKE RAIN A LOT", "12 34 56 78", "it is I who came", "a b C d", "no", "we went to Rome then"],
    ),
    "uppercase": (
        ["WE LIKE RAIN A LOT.", "IT IS LATE NOW!", "ONE TWO THREE FOUR", "DO YOU? I DO NOT.", "12 SMALL DOGS RAN OFF", "SO IT GOES, AND GOES", "ÜBER ALLES IST ES", "#FUN IS ALL WE WANT", "A B C D", "“GO HOME NOW, PLEASE”"],
        ["", "WE LIKE RAIN", "We like rain a lot.", "WE LIKE rAIN A LOT", "we like rain a lot", "12 34 56 78", "IT IS i WHO CAME", "A B c D", "NO", "WE WENT TO ROMe THEN"],
    ),
    "exclamation": (
        ["Go! Now!", "What a day! I love it!", "It rains! It pours! It floods!", '"Go!" "Now!"', "Yes!\nNo!", "Wow!! Great!!", "No way! (Really!)", "Hear me! Hear me! Hear me! Hear me!", "One! 2!", "So be it!  Amen!"],
        ["", "Go!", "Go! Now.", "Go. Now!", "Go, now!", "!", "! !", "What? No!", "It rains! It pours", "Rain. Rain. Rain."],
    ),
    "anaphora": (
        ["We ran. We fell. We slept.", "Tea is hot. Tea is good. Tea is all.", "I came! I saw! I won!", "no one came\nno one saw\nno one won", "Go on. Go up. Go away. Go home.", "The end. the cat. THE dog.", "When? When! When.",
         "It's late. It's dark. It's cold.", "All is well. All, I say. All!", "“Now go.” Now stay. Now sleep."],
        ["", "We ran. We fell.", "We ran. They fell. We slept.", "We ran and we fell and we slept.", "We. ran. fell.", "The cat. A cat. The cat.", "We ran. We fell. Then we slept.", "1. 2. 3.", "Tea is hot. Teas are good. Tea is all.", "One. Two. Three."],
    ),
    "aside": (
        ["It rains (as it often does).", "(We are late.) Go.", "He (my uncle) came.", "A (b c) d", "Tea (hot and black)", "Go (if you can)!", "(one two)", "It (so they say) is far (I think so).", "No (not at all).", "Rome (in Italy)"],
        ["", "It rains.", "It rains (often).", "It (1 2) rains", "()", "(a", "a b)", "[as it does]", "It (often)\nrains", "( )"],
    ),
    "hashtags": (
        ["#fun #sun", "Rain! #wet #cold", "#a and #b", "#Rain #rainy", "look:\n#one\n#two", "#x1 #x2", "So #good, so #bad.", "#a #b #c", "(#in #out)", "#one#two #three"],
        ["", "#fun", "fun sun", "# fun # sun", "#fun #fun", "#Fun #fun", "#1 #2", "a#b c#d", "##fun ##sun", "hashtag one, hashtag two"],
    ),
    "growing": (
        ["Go. Go on. Go on now.", "Rain. It rains. It rains all day.", "I came. I then saw. And in the end I won.", "No! Not now! Not now or ever!", "a\nb c\nd e f", "One. One two. One two three. One two three four.",
         "Tea? Tea, please. Tea with some milk, please.", "Run. Run away. They all ran away at once.", "We. We are. We are the very best.", "Yes. Yes, you. Yes, I mean you."],
        ["", "Go. Go on.", "Go on now. Go on. Go.", "It rains. It pours. It floods.", "Go. Go on. Go up.", "One two three four", "Go on. Go. Go on now.", "A b. A b c. A b c.", "1. 2 3. 4 5 6.", "Rain. It rains. It rains. It rains all day."],
    ),
}  # fmt: skip
